"""Flow maps, pipelines and prompts from a diffusers folder or hub id: safetensors only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError, nearest
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.diffusers.family import SCALE, LatentTransformer
from fmtt.models.diffusers.flux import Flux
from fmtt.models.diffusers.lumina2 import Lumina2
from fmtt.models.diffusers.refusals import one_line
from fmtt.models.diffusers.sana import Sana
from fmtt.models.diffusers.sana_sprint import SanaSprint
from fmtt.models.diffusers.sd3 import SD3
from fmtt.models.diffusers.student import network_of

FAMILIES: dict[str, type[LatentTransformer]] = {"flux": Flux, "sd3": SD3, "sana": Sana, "lumina2": Lumina2}
"""Families with a velocity: what is trained, sampled and steered."""
KNOWN = FAMILIES | {"sana_sprint": SanaSprint}
"""All families, with those that only look ahead."""
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""What from_pretrained takes of where and how the hub is read."""
JUMPS_ONLY = ("FlowMatchLCMScheduler", "LCMScheduler")
"""Schedulers of models that were distilled to jump to clean data."""


def library() -> Any:
    """The diffusers package.

    Raises:
        UserError: when it is missing.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError("text-to-image models need diffusers: pip install 'fmtt[diffusers]'") from error
    return diffusers


def family_of(config: Mapping[str, Any], where: str) -> type[LatentTransformer]:
    """The family of a transformer's config.

    Raises:
        UserError: for a class that no family knows.
    """
    transformer_class = config.get("_class_name")
    if transformer_class is None:
        raise UserError(f"{where} is no text-to-image pipeline: its transformer has no class name")
    if transformer_class == Sana.names.transformer and config.get("guidance_embeds"):
        return SanaSprint
    for family in FAMILIES.values():
        if family.names.transformer == transformer_class:
            return family
    known = ", ".join(KNOWN)
    raise UserError(f"{where} holds a {transformer_class}, which no family here can use (known: {known})")


def _family_of_part(transformer: Any) -> type[LatentTransformer]:
    """The family of a pipeline's transformer."""
    return family_of({**transformer.config, "_class_name": type(transformer).__name__}, "the pipeline")


def load_flow_map(
    where: str,
    *,
    family: str | None = None,
    height: int | None = None,
    width: int | None = None,
    latents: Sequence[int] | None = None,
    second_time: str = "none",
    guidance: float | None = None,
    few_step: bool | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> NeuralFlowMap:
    """The transformer of a pipeline as a frozen flow map; text encoders and autoencoder are not loaded.

    Args:
        where: a folder written by a pipeline's save_pretrained, or a hub id.
        family: refused if the folder holds another; found out if omitted.
        height, width: of pictures in pixels; the model's usual size if omitted.
        latents: the shape (C, H, W) of latents instead.
        guidance: the scale where conditions give none, for guidance-embedded models.
        few_step: whether the model knows jumps to clean data only. If omitted: FLUX.1 without a guidance
            embedding (schnell) does, and so does one whose scheduler is of :data:`JUMPS_ONLY`. SANA-Sprint
            always does.

    Raises:
        UserError: when files are missing, pickled, or of another family.
    """
    package = library()
    with one_line(where):
        config = package.AutoencoderKL.load_config(where, subfolder="transformer")
        found = family_of(config, where)
        _check_family(family, found, where)
        if found is SanaSprint and few_step is False:
            raise UserError(f"{where} is SANA-Sprint, which has no velocity: leave few_step out")
        vae = package.AutoencoderKL.load_config(where, subfolder="vae")
        shape = latent_shape(found, config, compression(vae), height, width)
        if latents is not None:
            shape = _checked_latents(latents, found, config, where)
        transformer_class = getattr(package, found.names.transformer)
        transformer = transformer_class.from_pretrained(
            where, subfolder="transformer", dtype=dtype or torch.float32, use_safetensors=True
        )
        if few_step is None:
            few_step = _knows_jumps_only(transformer, _scheduler_of(where))
    network = found(transformer, second_time=second_time, guidance=guidance, few_step=few_step)
    flow_map = NeuralFlowMap(network, Linear(), shape)
    return flow_map.to(device).eval().requires_grad_(False)


def load_pipeline(where: str, *, dtype: torch.dtype | None = None, **parts: Any) -> Any:
    """The pipeline, as diffusers makes it.

    Args:
        parts: components by name that are there already, or None for those to be left out.

    Raises:
        UserError: when files are missing, pickled, or of no family known here.
    """
    package = library()
    with one_line(where):
        config = package.AutoencoderKL.load_config(where, subfolder="transformer")
        family_of(config, where)
        given = {**left_out(where), **parts}
        pipeline = package.DiffusionPipeline.from_pretrained(
            where, dtype=dtype or torch.float32, use_safetensors=True, **given
        )
    if pipeline.transformer is None and getattr(pipeline, "text_encoder_3", pipeline) is None:
        # SD3 without its T5 asks the transformer how wide the zeros in place of that are to be.
        pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**config))
    return pipeline


def left_out(where: str, options: Mapping[str, Any] | None = None) -> dict[str, None]:
    """Parts that a pipeline was saved without, such as SD3's T5: diffusers wants to be told of them.

    Args:
        options: of its from_pretrained, of which those that say where to look are used.
    """
    own = {name: value for name, value in (options or {}).items() if name in HUB_OPTIONS}
    index = library().DiffusionPipeline.load_config(where, **own)
    return {name: None for name, kind in index.items() if isinstance(kind, list) and not any(kind)}


def family_pipeline(components: Mapping[str, Any]) -> Any:
    """diffusers' own pipeline over parts by name, which it shares; other parts are left out."""
    family = _family_of_part(components["transformer"])
    pipeline_class = getattr(library(), family.names.pipeline)
    wanted = inspect.signature(pipeline_class).parameters
    return pipeline_class(**{name: part for name, part in components.items() if name in wanted})


def sized(
    flow_map: NeuralFlowMap | None, components: Mapping[str, Any], height: int | None, width: int | None
) -> NeuralFlowMap:
    """A pipeline's flow map for pictures of that size in pixels, or of the usual one.

    Args:
        flow_map: over this kind of latents; the transformer alone, whose steps are Euler's, if None.
        components: the pipeline's transformer, vae and scheduler.

    Raises:
        UserError: for a flow map of another family, or a size that does not fit.
    """
    transformer, vae = components["transformer"], components["vae"].config
    family = _family_of_part(transformer)
    few_step = _knows_jumps_only(transformer, type(components["scheduler"]).__name__)
    network = family(transformer, few_step=few_step) if flow_map is None else network_of(flow_map)
    if type(network) is not family:
        raise UserError(
            f"flow_map is of family {network.names.family}, the pipeline of {family.names.family}"
        )
    shape = latent_shape(family, transformer.config, compression(vae), height, width)
    if flow_map is not None and height is None and width is None:
        shape = flow_map.data_shape
    return NeuralFlowMap(network, Linear() if flow_map is None else flow_map.interpolant, shape)


def compression(vae: Any) -> int:
    """How many pixels make the side of a latent, from an autoencoder's config."""
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    return 2 ** (len(blocks) - 1)


def latent_shape(
    family: type[LatentTransformer], config: Any, factor: int, height: int | None, width: int | None
) -> tuple[int, int, int]:
    """(C, H, W) of pictures of that size.

    Raises:
        UserError: when latents would not divide into patches.
    """
    usual = (config.get("sample_size") or 128) * factor
    patch = family.patch(config)
    size = (usual if height is None else height, usual if width is None else width)
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels < 1 or pixels % (factor * patch):
            raise UserError(f"{name} must be a multiple of {factor * patch} pixels, got {pixels}")
    return (family.latent_channels(config), size[0] // factor, size[1] // factor)


@torch.no_grad()
def encode_prompts(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    network: LatentTransformer | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    max_sequence_length: int | None = None,
) -> dict[str, Tensor]:
    """Conditions of the prompts, one row each, by the pipeline's own text encoders.

    Args:
        pipeline: of diffusers, of one of the families.
        network: of the flow map, where the pipeline has no transformer.
        guidance_scale: w; families without a guidance embedding get the negative prompt's conditions too,
            unless w is 1 or omitted.
    """
    transformer = pipeline.transformer if network is None else network.transformer
    family = _family_of_part(transformer)
    options = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
    embeds = family.embeds_guidance(transformer) or (network is not None and network.own_guidance is not None)
    two_passes = family.guided and guidance_scale is not None and guidance_scale != 1
    cond = family.encode(pipeline, list(prompts), negative_prompt if two_passes else None, options)
    if guidance_scale is not None and (embeds or two_passes):
        rows = cond["prompt_embeds"]
        cond[SCALE] = rows.new_full((len(rows),), guidance_scale, dtype=torch.float32)
    return cond


def _knows_jumps_only(transformer: Any, scheduler: str) -> bool:
    """Whether a transformer with a scheduler of that class was distilled to jump to clean data."""
    schnell = _family_of_part(transformer) is Flux and not Flux.embeds_guidance(transformer)
    return schnell or scheduler in JUMPS_ONLY


def _scheduler_of(where: str) -> str:
    """The class name of a pipeline's scheduler; empty for a folder without one."""
    folder = Path(where).expanduser()
    if folder.is_dir() and not (folder / "scheduler" / "scheduler_config.json").is_file():
        return ""
    # Any scheduler's class reads the config of any other.
    config = library().FlowMatchEulerDiscreteScheduler.load_config(where, subfolder="scheduler")
    return str(config.get("_class_name"))


def _checked_latents(
    latents: Sequence[int], family: type[LatentTransformer], config: Any, where: str
) -> tuple[int, int, int]:
    channels, patch, shape = family.latent_channels(config), family.patch(config), tuple(latents)
    if len(shape) != 3 or shape[0] != channels or shape[1] % patch or shape[2] % patch:
        needs = f"({channels}, H, W)" + (f" with H and W divisible by {patch}" if patch > 1 else "")
        raise UserError(f"{where} takes latents of shape {needs}, not {shape}: encode with its own pipeline")
    return (shape[0], shape[1], shape[2])


def _check_family(wanted: str | None, found: type[LatentTransformer], where: str) -> None:
    if wanted is None:
        return
    if wanted not in KNOWN:
        raise UserError(f"family must be one of {', '.join(KNOWN)}, got {wanted!r}{nearest(wanted, KNOWN)}")
    if KNOWN[wanted] is not found:
        own = found.names
        held = "SANA-Sprint" if found is SanaSprint else f"a {own.transformer}"
        raise UserError(f"{where} holds {held}, not family {wanted}: set family to {own.family}")
