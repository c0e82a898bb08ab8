"""Data sets that are computed: sample i is a pure function of (seed, i), whatever batch it comes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from data.counter import uniforms
from data.digits import DATA_SHAPE as DIGITS_SHAPE
from data.digits import digits_batch
from data.index import Array
from fmtt.errors import UserError, nearest
from fmtt.rewards import clock

MODES, MODE_RADIUS, MODE_STD = 8, 1.4, 0.15
"""The 2-D mixture: equally likely Gaussians on a circle."""
BOARD_CELLS, BOARD_HALF_SIDE = 4, 1.8
"""The checkerboard: cells per side, and half the board's side."""


class Point(NamedTuple):
    """Latent variable of a 2-D sample: which mode or square it comes from, (B,) int64."""

    label: Tensor


@dataclass(frozen=True)
class ProceduralSet:
    """A data set by formula."""

    data_shape: tuple[int, ...]
    generate: Callable[[Tensor, int], tuple[Tensor, Any]]
    """``generate(indices (B,) int64, seed)`` gives x (B, *D) float32 and a NamedTuple of latents (B, ...)."""
    dtype: str = "float32"
    """How shards store x."""
    cond: tuple[str, ...] = ()
    """The latents that are handed to the network as conditioning."""

    def batch(self, indices: Tensor, seed: int) -> Batch:
        """The samples ``indices`` (B,) of the set with this seed."""
        x, latents = self.generate(indices, seed)
        return Batch(x, {name: getattr(latents, name) for name in self.cond} or None)

    def cond_arrays(self) -> dict[str, Array]:
        """Shapes and dtypes of the conditioning."""
        cond = self.batch(torch.arange(1), 0).cond or {}
        return {
            name: Array(tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
            for name, value in cond.items()
        }


def _uniforms(indices: Tensor, seed: int, fields: int) -> Tensor:
    """Uniform numbers (B, fields), float64, one counter each."""
    index = indices.to(torch.int64).cpu().numpy()[:, None]
    return torch.from_numpy(uniforms(seed, index, np.arange(fields)[None, :]))


def clock_latents(indices: Tensor, seed: int) -> clock.Clock:
    """Times from the clock's prior and uniform shades of the samples ``indices`` (B,)."""
    u = _uniforms(indices, seed, 1 + clock.NUM_SHADES)
    return clock.Clock(clock.time_quantile(u[:, 0]).float() % clock.MINUTES, u[:, 1:].float())


def clock_batch(indices: Tensor, seed: int) -> tuple[Tensor, clock.Clock]:
    """Analogue clocks: images (B, 3, 32, 32) in [-0.5, 0.5], and their times and shades."""
    latents = clock_latents(indices, seed)
    return clock.render(latents), latents


def mixture_batch(indices: Tensor, seed: int) -> tuple[Tensor, Point]:
    """Points (B, 2) of equally likely Gaussians on a circle, labelled by mode."""
    u = _uniforms(indices, seed, 3)
    label = (u[:, 0] * MODES).long()
    angle = label * (2 * math.pi / MODES)
    centre = MODE_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return (centre + MODE_STD * torch.special.ndtri(u[:, 1:])).float(), Point(label)


def checkerboard_batch(indices: Tensor, seed: int) -> tuple[Tensor, Point]:
    """Points (B, 2) uniform on the dark squares of a board centred at the origin, labelled by square."""
    u = _uniforms(indices, seed, 3)
    label = (u[:, 0] * (BOARD_CELLS**2 // 2)).long()
    row, pair = label // (BOARD_CELLS // 2), label % (BOARD_CELLS // 2)
    corner = torch.stack([2 * pair + row % 2, row], dim=1)
    return ((corner + u[:, 1:]) * (2 * BOARD_HALF_SIDE / BOARD_CELLS) - BOARD_HALF_SIDE).float(), Point(label)


PROCEDURAL: dict[str, ProceduralSet] = {
    "clock": ProceduralSet(clock.DATA_SHAPE, clock_batch, dtype="float16"),
    "mixture": ProceduralSet((2,), mixture_batch),
    "mixture-labelled": ProceduralSet((2,), mixture_batch, cond=("label",)),
    "checkerboard": ProceduralSet((2,), checkerboard_batch),
    "digits": ProceduralSet(DIGITS_SHAPE, digits_batch, dtype="float16"),
}
"""Every computed data set, by the name that configs and the command line use."""


def procedural(name: str) -> ProceduralSet:
    """The computed data set of that name.

    Raises:
        UserError: when there is none; the message names the nearest.
    """
    if name not in PROCEDURAL:
        sets = ", ".join(PROCEDURAL)
        raise UserError(f"no data set is called {name!r}; sets: {sets}{nearest(name, PROCEDURAL)}")
    return PROCEDURAL[name]
