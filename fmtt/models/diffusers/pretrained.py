"""Flow maps, pipelines and prompts from a diffusers folder or hub id: safetensors only."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmtt import hub
from fmtt.errors import UserError, nearest
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.diffusers.family import SCALE, LatentTransformer
from fmtt.models.diffusers.flux import Flux
from fmtt.models.diffusers.lumina2 import Lumina2
from fmtt.models.diffusers.sana import Sana
from fmtt.models.diffusers.sd3 import SD3
from fmtt.models.diffusers.student import network_of

FAMILIES: dict[str, type[LatentTransformer]] = {"flux": Flux, "sd3": SD3, "sana": Sana, "lumina2": Lumina2}


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


def family_of(transformer_class: str, where: str) -> type[LatentTransformer]:
    """The family whose transformer has that class name.

    Raises:
        UserError: for a class that no family knows.
    """
    for family in FAMILIES.values():
        if family.names.transformer == transformer_class:
            return family
    if transformer_class == "None":
        raise UserError(f"{where} is no text-to-image pipeline: its transformer has no class name")
    known = ", ".join(FAMILIES)
    raise UserError(f"{where} holds a {transformer_class}, which no family here can use (known: {known})")


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
            embedding (schnell) is, all others are not.

    Raises:
        UserError: when files are missing, pickled, or of another family.
    """
    package = library()
    with one_line(where):
        config = package.AutoencoderKL.load_config(where, subfolder="transformer")
        found = family_of(str(config.get("_class_name")), where)
        _check_family(family, found, where)
        vae = package.AutoencoderKL.load_config(where, subfolder="vae")
        shape = latent_shape(found, config, compression(vae), height, width)
        if latents is not None:
            shape = _checked_latents(latents, found, config, where)
        transformer_class = getattr(package, found.names.transformer)
        transformer = transformer_class.from_pretrained(
            where, subfolder="transformer", dtype=dtype or torch.float32, use_safetensors=True
        )
    if few_step is None:
        few_step = found is Flux and not found.embeds_guidance(transformer)
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
        family_of(str(config.get("_class_name")), where)
        return package.DiffusionPipeline.from_pretrained(
            where, dtype=dtype or torch.float32, use_safetensors=True, **parts
        )


def family_pipeline(components: Mapping[str, Any]) -> Any:
    """diffusers' own pipeline over parts by name, which it shares; other parts are left out."""
    family = family_of(type(components["transformer"]).__name__, "the pipeline")
    pipeline_class = getattr(library(), family.names.pipeline)
    wanted = inspect.signature(pipeline_class).parameters
    return pipeline_class(**{name: part for name, part in components.items() if name in wanted})


def sized(
    flow_map: NeuralFlowMap | None, transformer: Any, vae: Any, height: int | None, width: int | None
) -> NeuralFlowMap:
    """A pipeline's flow map for pictures of that size in pixels, or of the usual one.

    Args:
        flow_map: over this kind of latents; the transformer alone, whose steps are Euler's, if None.
        vae: the autoencoder's config.

    Raises:
        UserError: for a flow map of another family, or a size that does not fit.
    """
    family = family_of(type(transformer).__name__, "the pipeline")
    network = family(transformer) if flow_map is None else network_of(flow_map)
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
    family = family_of(type(transformer).__name__, "the pipeline")
    options = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
    embeds = family.embeds_guidance(transformer) or (network is not None and network.own_guidance is not None)
    two_passes = family.guided and guidance_scale is not None and guidance_scale != 1
    cond = family.encode(pipeline, list(prompts), negative_prompt if two_passes else None, options)
    if guidance_scale is not None and (embeds or two_passes):
        rows = cond["prompt_embeds"]
        cond[SCALE] = rows.new_full((len(rows),), guidance_scale, dtype=torch.float32)
    return cond


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
    if wanted not in FAMILIES:
        raise UserError(
            f"family must be one of {', '.join(FAMILIES)}, got {wanted!r}{nearest(wanted, FAMILIES)}"
        )
    if FAMILIES[wanted] is not found:
        own = found.names
        raise UserError(f"{where} holds a {own.transformer}, not family {wanted}: set family to {own.family}")


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what diffusers raises about ``where`` into one line with the remedy."""
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{where} does not fit in memory: load it in bfloat16, or on a larger device"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, json.JSONDecodeError) as error:
        raise UserError(_explanation(where, error)) from error


def _explanation(where: str, error: BaseException) -> str:
    folder = Path(where).expanduser()
    if folder.is_dir():
        weights = folder / "transformer"
        if not (weights / "config.json").is_file():
            return f"{where} has no transformer/config.json: give a folder that a pipeline was saved to"
        if not list(weights.glob("*.safetensors")):
            return f"{where} has no transformer/*.safetensors (pickles are not read): download it again"
    elif folder.exists() or where.startswith((".", "/", "~")):
        return f"there is no folder {where}: give one written by a pipeline's save_pretrained, or a hub id"
    elif (refusal := hub.refusal(where, error)) is not None:
        return refusal
    return f"{where} cannot be loaded: {hub.first_line(error)}"
