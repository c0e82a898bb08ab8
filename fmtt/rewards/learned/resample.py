"""Pillow's image resize as two matrix products, so that gradients pass through it.

Pillow resizes 8-bit images one axis at a time, with a filter stretched by the reduction (antialiasing),
and rounds and clips to 0..255 after each. Without the rounding this is the
function that the processors of pretrained networks apply, with a gradient; with it, the values are
Pillow's own to the last bit (its coefficients are whole multiples of 2^-22), and gradients pass straight
through the rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fmtt.errors import UserError

PRECISION = 1 << 22
"""Pillow's coefficients are whole multiples of 1 / PRECISION."""
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
"""Pillow's numbers for its filters."""
SUPPORT = {LANCZOS: 3.0, BILINEAR: 1.0, BICUBIC: 2.0}


def _kernel(filter: int, x: Tensor) -> Tensor:
    """The filter at distances ``x`` (float64), zero beyond its support."""
    x = x.abs()
    if filter == LANCZOS:
        return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    if filter == BILINEAR:
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic with a = -1/2
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


@lru_cache(maxsize=64)
def matrix(before: int, after: int, filter: int) -> Tensor:
    """Weights (after, before), float64, of the resize of one axis; every row sums to 1.

    Raises:
        UserError: when the filter is none of LANCZOS, BILINEAR and BICUBIC.
    """
    if filter not in SUPPORT:
        raise UserError(f"the processor resizes by Pillow's filter {filter}, which has no gradient here")
    scale = before / after
    stretch = max(scale, 1.0)
    support = SUPPORT[filter] * stretch
    weights = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        centre = (row + 0.5) * scale
        first = max(math.trunc(centre - support + 0.5), 0)
        last = min(math.trunc(centre + support + 0.5), before)
        taps = torch.arange(first, last, dtype=torch.float64)
        values = _kernel(filter, (taps - centre + 0.5) / stretch)
        weights[row, first:last] = values / values.sum()
    return weights


@lru_cache(maxsize=64)
def _matrix_like(before: int, after: int, filter: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return matrix(before, after, filter).to(device, dtype)


def straight_through(value: Tensor, exact: Tensor) -> Tensor:
    """The value of ``exact`` with the gradient of ``value``."""
    return value + (exact - value).detach()


def _along_last(levels: Tensor, after: int, filter: int, rounding: bool) -> Tensor:
    before = levels.shape[-1]
    if before == after:
        return levels
    out = levels @ _matrix_like(before, after, filter, levels.device, levels.dtype).T
    if rounding:
        weights = (matrix(before, after, filter) * PRECISION).round() / PRECISION
        exact = (levels.detach().double() @ weights.to(levels.device).T + 0.5).floor()
        out = straight_through(out, exact.to(out.dtype))
    return out.clamp(0, 255)


def _in_order(levels: Tensor, size: tuple[int, int], filter: int, rounding: bool, down_first: bool) -> Tensor:
    def down(images: Tensor) -> Tensor:
        return _along_last(images.transpose(-1, -2), size[0], filter, rounding).transpose(-1, -2)

    def across(images: Tensor) -> Tensor:
        return _along_last(images, size[1], filter, rounding)

    return across(down(levels)) if down_first else down(across(levels))


@lru_cache(maxsize=256)
def goes_down_first(before: tuple[int, int], after: tuple[int, int], filter: int) -> bool:
    """Whether the installed Pillow resizes columns before rows.

    It used to take rows first always, and now takes the axis that it reckons cheaper first. Clipping between
    the passes makes the order matter, so Pillow is asked, by one grey image of noise.
    """
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, before, generator=generator, dtype=torch.uint8)
    grey = Image.frombytes("L", (before[1], before[0]), noise.numpy().tobytes())
    own = torch.frombuffer(bytearray(grey.resize((after[1], after[0]), filter).tobytes()), dtype=torch.uint8)
    rows_first = _in_order(noise.double(), after, filter, True, False)
    return not torch.equal(rows_first.flatten(), own.double())


def resize(levels: Tensor, size: tuple[int, int], filter: int, *, rounding: bool = False) -> Tensor:
    """Resize images (..., H, W) of levels in [0, 255] to (..., *size).

    Args:
        filter: LANCZOS, BILINEAR or BICUBIC.
        rounding: round as Pillow does; the levels must then be whole numbers.

    Raises:
        UserError: when the filter is another.
    """
    before = (levels.shape[-2], levels.shape[-1])
    if before == size:
        return levels
    return _in_order(levels, size, filter, rounding, goes_down_first(before, size, filter))
