"""Distances between two samples: sliced Wasserstein and maximum mean discrepancy, with their noise floors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PROJECTIONS = 64


def directions(dimension: int, count: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Random unit vectors (dimension, count), drawn on the generator's device."""
    source = like.device if generator is None else generator.device
    v = torch.randn(dimension, count, generator=generator, device=source, dtype=torch.float64)
    return (v / v.norm(dim=0)).to(like)


def sliced_wasserstein(a: Tensor, b: Tensor, projections: Tensor) -> Tensor:
    """Sliced 2-Wasserstein distance of equally many samples a, b (N, d) over projections (d, M).

    Scaled by sqrt(d), so that a shift by v moves it by |v| in any dimension; Euclidean units.
    """
    if a.shape != b.shape:
        raise ValueError(f"both samples need the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    u, v = ((y @ projections).double().sort(0).values for y in (a, b))
    return (u - v).square().mean().sqrt() * math.sqrt(a.shape[1])


def _kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    return torch.exp(torch.cdist(x, y).square() / (-2 * bandwidth**2))


def self_similarity(x: Tensor, bandwidth: float) -> Tensor:
    """Mean kernel over the distinct pairs of a sample (N, d)."""
    n = len(x)
    return (_kernel(x, x, bandwidth).sum() - n) / (n * (n - 1))


def mmd(a: Tensor, b: Tensor, bandwidth: float, *, own: Tensor | None = None) -> Tensor:
    """Squared maximum mean discrepancy of samples a (N, d), b (M, d), kernel exp(-|x - y|² / (2 h²)).

    The unbiased estimate: its mean is 0 for one law, so it may be slightly negative.

    Args:
        own: :func:`self_similarity` of b, where several samples are compared with the same one.
    """
    own = self_similarity(b, bandwidth) if own is None else own
    return self_similarity(a, bandwidth) + own - 2 * _kernel(a, b, bandwidth).mean()


class Drift(NamedTuple):
    """A distance beside what relabelling the two samples at random gives.

    Attributes:
        distance: between the samples.
        floor, floor_deviation: mean and standard deviation over relabellings.
    """

    distance: float
    floor: float
    floor_deviation: float

    @property
    def significance(self) -> float:
        """How many standard deviations the distance is above its floor."""
        return (self.distance - self.floor) / max(self.floor_deviation, 1e-300)

    @property
    def excess(self) -> float:
        """The distance freed of its floor, sqrt(max(0, distance² - floor²))."""
        return max(0.0, self.distance**2 - self.floor**2) ** 0.5


def permutation_drift(
    a: Tensor, b: Tensor, *, relabellings: int = 40, generator: torch.Generator | None = None
) -> Drift:
    """Sliced Wasserstein distance of a and b (N, *D), and what chance alone gives at this size."""
    a, b = a.flatten(1), b.flatten(1)
    lines = directions(a.shape[1], PROJECTIONS, generator, a)
    scale = math.sqrt(a.shape[1])
    pooled = (torch.cat([a, b]) @ lines).double()  # (2N, M)

    def distance(first: Tensor, second: Tensor) -> float:
        gap = pooled[first].sort(0).values - pooled[second].sort(0).values
        return float(gap.square().mean().sqrt()) * scale

    n = len(a)
    source = pooled.device if generator is None else generator.device
    order = torch.arange(2 * n, device=source)
    found = distance(order[:n], order[n:])
    null = []
    for _ in range(relabellings):
        order = torch.randperm(2 * n, generator=generator, device=source)
        null.append(distance(order[:n], order[n:]))
    floor = torch.tensor(null, dtype=torch.float64)
    return Drift(found, float(floor.mean()), float(floor.std()))
