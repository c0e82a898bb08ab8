"""A reader of clocks that shares nothing with the reward: rendering match. Used for judging only.

For each half minute it fits the six parts' colours by least squares and keeps the time whose
rendering explains the image best. It has no useful gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.rewards import clock

STEP = 0.5
"""Minutes between the times that are tried."""
MAX_RESIDUAL = 0.034
"""Largest root-mean-square residual (RGB units) of an image that counts as a readable clock."""
MAX_COLOUR_ERROR = 0.25
"""Largest distance (RGB) of a hand's fitted colour from the colours that hands have. Clocks reach 0.18 where
the hands cover each other; two clocks laid over each other, half a hand each, are at 0.29 or beyond."""


class Reading(NamedTuple):
    """Per image (B,): time in minutes, residual (RGB root mean square), and whether it is a clock."""

    time: Tensor
    residual: Tensor
    readable: Tensor


@lru_cache(maxsize=4)
def _templates(size: int) -> tuple[Tensor, Tensor]:
    """Layer weights (M, size², 6) of M times and orthonormal bases of their spans, of the same shape."""
    layers = clock.layer_weights(torch.arange(0, clock.MINUTES, STEP), size).flatten(2).transpose(1, 2)
    basis, _ = torch.linalg.qr(layers)
    return layers.contiguous(), basis.contiguous()


def read(images: Tensor, *, chunk: int = 256) -> Reading:
    """Read clocks from images (B, 3, H, W) of this data set."""
    layers, basis = _templates(images.shape[-1])
    parts = [_read_chunk(x, layers, basis) for x in images.detach().float().cpu().split(chunk)]
    return Reading(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _read_chunk(images: Tensor, layers: Tensor, basis: Tensor) -> Reading:
    finite = images.isfinite().flatten(1).all(1)
    pixels = clock.unscale(images.nan_to_num(0, 0, 0)).flatten(2)  # (B, 3, P)
    B, C, P = pixels.shape
    coefficients = pixels.reshape(B * C, P) @ basis.permute(1, 0, 2).reshape(P, -1)
    explained = coefficients.reshape(B, C, len(basis), basis.shape[-1]).square().sum((1, 3))  # (B, M)
    best, index = explained.max(1)
    residual = ((pixels.square().sum((1, 2)) - best).clamp_min(0) / (C * P)).sqrt()
    fitted = torch.linalg.lstsq(layers[index], pixels.transpose(1, 2)).solution  # (B, 6, 3)
    hands = torch.maximum(
        _colour_error(fitted[:, 4], *clock.HOUR), _colour_error(fitted[:, 5], *clock.MINUTE)
    )
    is_clock = finite & (residual < MAX_RESIDUAL) & (hands < MAX_COLOUR_ERROR)
    return Reading(index * STEP, residual, is_clock)


def _colour_error(colour: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
    """Distance (B,) of colours (B, 3) from the segment between two."""
    start = colour.new_tensor(low)
    along = colour.new_tensor(high) - start
    shade = (((colour - start) @ along) / (along @ along)).clamp(0, 1)
    return (colour - start - shade[:, None] * along).norm(dim=1)


def captions(images: Tensor) -> list[str]:
    """The time read from each image (B, 3, H, W), written ``h:mm``; ``?`` where it is no clock."""
    reading = read(images)
    pairs = zip(reading.time.tolist(), reading.readable.tolist(), strict=True)
    return [clock.format_time(time) if readable else "?" for time, readable in pairs]


def hits(images: Tensor, target: str, tolerance_minutes: float) -> Tensor:
    """Whether each image (B, 3, H, W) is a readable clock within the tolerance of ``target``, (B,) bool."""
    reading = read(images)
    error = clock.time_difference(reading.time, clock.parse_time(target)).abs()
    return reading.readable & (error <= tolerance_minutes)
