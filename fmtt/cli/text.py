"""What exports of text-to-image models need besides: a prompt's conditions, and pictures from latents."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmtt.cli.guidance import trained_scales
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers.decoder import DecodedReward, Decoder
from fmtt.models.diffusers.export import FLOW_MAP, base_of
from fmtt.models.diffusers.family import LatentTransformer
from fmtt.models.diffusers.pretrained import (
    KNOWN,
    compression,
    encode_prompts,
    latent_shape,
    load_flow_map,
    load_pipeline,
)
from fmtt.models.diffusers.student import network_of
from fmtt.rewards import describe
from fmtt.types import Reward

OPTIONS = ("prompt", "negative_prompt", "height", "width")
VALUES = (0.0, 1.0)
"""What black and white are in decoded pictures."""


def needs_text(flow_map: NeuralFlowMap) -> bool:
    """Whether a loaded export is a text-to-image model's."""
    return flow_map.config["network"]["name"] in KNOWN


def refuse_options(args: Namespace) -> None:
    """Refuse a prompt, or a size, for a model that takes none.

    Raises:
        UserError: naming the option.
    """
    for name in OPTIONS:
        if getattr(args, name, None):
            what = "takes no text" if "prompt" in name else "makes samples of one size"
            raise UserError(f"{args.export} {what}; leave --{name.replace('_', '-')} out")


class Text:
    """A text-to-image export as commands use it.

    Args:
        flow_map: whose ``data_shape`` becomes that of ``height`` and ``width``, where given.
        args: with ``export``, ``prompt``, ``guidance_scale``, ``negative_prompt``, ``height`` and ``width``.

    Attributes:
        cond: conditions of the prompt, one row.

    Raises:
        UserError: without a prompt, or where the base pipeline is not to be had.
    """

    def __init__(self, flow_map: NeuralFlowMap, args: Namespace, device: torch.device) -> None:
        if not getattr(args, "prompt", None):
            raise UserError(
                f"{args.export} makes images from text: sample, tilt, search or evaluate it, with --prompt"
            )
        if getattr(args, "label", None) is not None:
            raise UserError(f"{args.export} is not class-conditional; leave --label out")
        network = network_of(flow_map)
        scale = args.guidance_scale if args.guidance_scale is not None else network.guidance
        _check_guidance(flow_map, network, scale, args)
        where = base_of(args.export, flow_map.config)
        pipeline = load_pipeline(where, dtype=network.dtype, transformer=None).to(device)
        if args.height or args.width:
            factor, (_, h, w) = compression(pipeline.vae.config), flow_map.data_shape
            size = args.height or h * factor, args.width or w * factor
            flow_map.data_shape = latent_shape(type(network), network.transformer.config, factor, *size)
        self.cond: dict[str, Tensor] = encode_prompts(
            pipeline,
            [args.prompt],
            network=network,
            guidance_scale=scale,
            negative_prompt=args.negative_prompt or "",
        )
        self.prompt: str = args.prompt
        self.decoder = Decoder(pipeline.vae, max_batch=getattr(args, "chunk_size", None))

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        return self.decoder(latents)

    def sees(self, reward: Reward) -> Reward:
        """The reward as one of latents: of decoded pictures, unless it scores latents itself."""
        return reward if describe(reward).space == "latents" else DecodedReward(reward, self.decoder)


def _check_guidance(
    flow_map: NeuralFlowMap, network: LatentTransformer, scale: float | None, args: Namespace
) -> None:
    """Refuse a scale or a negative prompt that the model cannot use.

    Raises:
        UserError: naming the option.
    """
    if scale is None and network.embeds_guidance(network.transformer):
        raise UserError(
            f"{args.export} takes a guidance scale as an input: give --guidance-scale, such as 3.5"
        )
    if args.negative_prompt and network.two_passes and scale in (None, 1):
        raise UserError("--negative-prompt has no effect without --guidance-scale above 1: give both")
    if args.guidance_scale is not None and not (
        network.guided or network.own_guidance is not None or network.embeds_guidance(network.transformer)
    ):
        raise UserError(f"{args.export} knows no guidance; leave --guidance-scale out")
    if args.negative_prompt and not network.two_passes:
        raise UserError(f"{args.export} takes one pass and no negative prompt; leave --negative-prompt out")
    low, high = trained_scales(flow_map) or (0.0, 0.0)
    # A model of two passes is guided like its teacher; one distilled at a single scale may try others.
    if scale is not None and low < high and not network.two_passes and not low <= scale <= high:
        raise UserError(
            f"{args.export} is trained for --guidance-scale from {low:g} to {high:g}, got {scale:g}"
        )


def pipeline_teacher(where: str, like: NeuralFlowMap, device: torch.device) -> Any:
    """The transformer of a pipeline's folder as a velocity on the same latents; None where it is no such
    folder, or holds a flow map."""
    if not (Path(where) / "model_index.json").is_file() or (Path(where) / FLOW_MAP).is_dir():
        return None
    options: dict[str, Any] = {"latents": like.data_shape, "guidance": network_of(like).guidance}
    return load_flow_map(where, **options, dtype=network_of(like).dtype, device=device)


def check_family(other: NeuralFlowMap, like: NeuralFlowMap, what: str) -> None:
    """Refuse a model that reads other prompts. SANA and SANA-Sprint read the same.

    Raises:
        UserError: naming both families.
    """
    names = getattr(other.network, "names", None)
    if names is None:  # no text-to-image model, whose shape will not fit
        return
    theirs, mine = names.family, network_of(like).names.family
    if theirs.removesuffix("_sprint") != mine.removesuffix("_sprint"):
        raise UserError(f"{what} is of family {theirs}, the export of family {mine}: their prompts differ")
