"""A given picture as a sampler's start: how much of it is kept, and which part of it is free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fmtt.errors import UserError
from fmtt.flow.masked import Known, MaskedFlowMap, masked_velocity
from fmtt.models.diffusers.decoder import Decoder
from fmtt.types import Cond, FlowMap, Reward

LAW = (
    " Particles are the masked part; the rest is the picture, noised to each time by one noise for all. That "
    "is the law of the velocity so run, not the model's law given the rest."
)
"""What a mask adds to a result's base law."""


class Begin(NamedTuple):
    """What a run starts from.

    Attributes:
        times: of its steps, the first being the start's.
        particles: ``x_init``, ``x_init_is`` and ``t_start`` of :func:`fmtt.tilt`.
        known: what is known of the samples; None if all of them is free.
    """

    times: list[float]
    particles: dict[str, Any]
    known: Known | None = None

    def free(self, flow_map: FlowMap) -> FlowMap:
        """The flow map of what is free."""
        return flow_map if self.known is None else MaskedFlowMap(flow_map, self.known)

    def steering(self, given: dict[str, Any], sigmas: Sequence[float] | None = None) -> dict[str, Any]:
        """Arguments of a tilt or search on whole samples, as arguments on what is free of them.

        Args:
            sigmas: noise levels that were asked for; None for those of ``given["times"]``.

        Raises:
            UserError: for those that the start decides, or that see whole samples only.
        """
        decided = {*self.particles, *(("x_init_is", "times") if "t_start" in self.particles else ())}
        if both := sorted(decided & given.keys()):
            raise UserError(f"{both[0]} contradicts image and latents: they say where particles start")
        if sigmas is not None and "times" in given:
            raise UserError("times contradicts sigmas: each says which steps are taken")
        if self.known is None:
            return given
        own = dict(given)
        if not isinstance(own.get("lookahead", ""), str):
            raise UserError("with mask_image lookahead must be a name")
        if own.get("velocity") is not None:
            own["velocity"] = masked_velocity(own["velocity"], self.known)
        if own.get("lookahead_map") is not None:
            own["lookahead_map"] = MaskedFlowMap(own["lookahead_map"], self.known)
        return own

    def reward(self, reward: Reward) -> Reward:
        """A reward of whole samples as one of what is free of them."""
        return reward if self.known is None else PartReward(reward, self.known)

    @property
    def law(self) -> str:
        """What a result's base law has to say besides."""
        return "" if self.known is None else LAW

    def whole(self, x: Tensor, t: float) -> Tensor:
        """Whole samples at time t."""
        return x if self.known is None else self.known.whole(x, t)

    def part(self, x: Tensor) -> Tensor:
        """What is free of whole samples."""
        return x if self.known is None else self.known.part(x)


class PartReward:
    """A reward of samples as a reward of their free part."""

    def __init__(self, reward: Reward, known: Known) -> None:
        self.plain, self.known = reward, known
        self.differentiable = getattr(reward, "differentiable", None)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        return self.plain(self.known.whole(x1, 1.0), cond)


def tail(times: Sequence[float], strength: float) -> list[float]:
    """The times of an edit, as diffusers has it: of K steps the last ceil(K strength).

    Raises:
        UserError: when ``strength`` leaves nothing to do.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength must lie in (0, 1], got {strength}: 1 keeps nothing of the picture")
    K = len(times) - 1
    return list(times[K - min(K, math.ceil(K * strength - 1e-9)) :])


def begin(
    flow_map: FlowMap,
    decoder: Decoder,
    times: Sequence[float],
    shape: Sequence[int],
    *,
    image: Any,
    mask_image: Any,
    strength: float,
    latents: Tensor | None,
    copies: int,
    factor: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Begin:
    """The start of a run that ``image``, or noise, decides.

    Args:
        times: of all steps, from 0 to 1.
        shape: of latents, (C, h, w).
        image, mask_image: as diffusers takes them; one, or with ``image`` alone one per prompt.
        latents: noise (rows, C, h, w) in place of a draw.
        copies: particles per prompt.
        factor: pixels per side of a latent.

    Raises:
        UserError: when arguments contradict each other.
    """
    if image is None:
        if mask_image is not None:
            raise UserError("mask_image needs image, the picture that it masks")
        own = {} if latents is None else {"x_init": latents}
        return Begin(list(times), own)
    times = tail(times, strength)
    clean = decoder.encode(_pixels(image, 3, shape, factor, device))
    if latents is not None and tuple(latents.shape[1:]) != tuple(shape):
        raise UserError(f"latents must be rows of shape {tuple(shape)}, got {tuple(latents.shape)}")
    if mask_image is not None:
        return _masked(flow_map, times, clean, mask_image, latents, factor, generator)
    if len(clean) > 1:
        clean = clean.repeat_interleave(copies, 0)
    if latents is None:
        return Begin(times, {"x_init": clean, "x_init_is": "clean", "t_start": times[0]})
    if len({len(latents), len(clean)} - {1}) > 1:
        raise UserError(f"latents must have 1 or {len(clean)} rows beside these images, got {len(latents)}")
    noise, clean = torch.broadcast_tensors(latents.to(clean), clean)
    state = flow_map.interpolant.interpolate(noise, clean, times[0])
    return Begin(times, {"x_init": state, "t_start": times[0]})


def _masked(
    flow_map: FlowMap,
    times: list[float],
    clean: Tensor,
    mask_image: Any,
    latents: Tensor | None,
    factor: int,
    generator: torch.Generator | None,
) -> Begin:
    shape = tuple(clean.shape[1:])
    if len(clean) != 1:
        raise UserError(f"mask_image goes with one image for all prompts, got {len(clean)}")
    grey = _pixels(mask_image, 1, shape, factor, clean.device)[:1]
    # A latent is free if any of its pixels is.
    mask = F.adaptive_max_pool2d(grey, shape[1:])[0].expand(shape) >= 0.5
    if not bool(mask.any()):
        raise UserError("mask_image has no white pixel: white is what is painted anew")
    if latents is None:
        where = clean.device if generator is None else generator.device
        noise = torch.randn(shape, generator=generator, device=where).to(clean)
    else:
        noise = latents[0].to(clean)
    known = Known(flow_map.interpolant, clean[0], noise, mask)
    start: dict[str, Any] = {"t_start": times[0]}
    if latents is None:
        start |= {"x_init": known.part(clean), "x_init_is": "clean"}
    else:
        start["x_init"] = known.part(
            flow_map.interpolant.interpolate(latents.to(clean), clean.expand_as(latents), times[0])
        )
    return Begin(times, start, known)


def _pixels(image: Any, channels: int, shape: Sequence[int], factor: int, device: torch.device) -> Tensor:
    """Pictures of the model's size, (rows, channels, H, W) in [0, 1].

    Raises:
        UserError: for what is no picture.
    """
    items = list(image) if isinstance(image, list | tuple) else [image]
    size = shape[1] * factor, shape[2] * factor
    try:
        if all(isinstance(item, Image.Image) for item in items):
            own: dict[str, Any] = {"do_convert_rgb": channels == 3, "do_convert_grayscale": channels == 1}
            processor = VaeImageProcessor(vae_scale_factor=factor, do_normalize=False, **own)
            pixels = processor.preprocess(items, *size)
        else:
            pixels = torch.cat([_planes(item, channels, size) for item in items])
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(f"a picture must be a PIL image, an array or a tensor in [0, 1]: {error}") from error
    return pixels.to(device=device, dtype=torch.float32)


def _planes(picture: Any, channels: int, size: tuple[int, int]) -> Tensor:
    """An array (rows, H, W, C) or a tensor (rows, C, H, W), both with rows and C where they have them, as
    (rows, channels, *size). diffusers brings these to a size by dropping pixels."""
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(picture.copy())
        picture = picture.movedim(-1, -3) if picture.ndim > 2 else picture
    if not isinstance(picture, Tensor):
        raise TypeError(f"got a {type(picture).__name__}")
    x = picture[(None,) * (4 - picture.ndim)].float()
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"got shape {tuple(picture.shape)}, which has not 1 or 3 channels")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("got values outside")
    x = x.mean(1, keepdim=True) if channels == 1 else x.expand(-1, channels, -1, -1)
    same = tuple(x.shape[2:]) == size
    return x if same else F.interpolate(x, size, mode="bilinear", antialias=True)
