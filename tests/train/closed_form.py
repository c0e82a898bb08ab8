"""A Gaussian's exact flow, points of its path, and maps that are deliberately not its flow."""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.flow.oracle import Gaussian
from fmtt.tensor import expand_like
from train.losses import PathSample, Times
from train.losses.base import sample_path


def exact(interpolant) -> Gaussian:
    return Gaussian([0.5, -1.0], [[0.8, 0.3], [0.3, 0.4]], interpolant)


def draw(gaussian: Gaussian, n: int, generator: torch.Generator) -> tuple[PathSample, Times]:
    """A path sample with data from ``gaussian``, and times s < u < t."""
    a = torch.rand(3, n, generator=generator, dtype=torch.float64)
    s = 0.9 * a[0]
    t = s + (0.02 + 0.98 * a[1]) * (1 - s)
    times = Times(s, s + a[2] * (t - s), t)
    x_0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return sample_path(gaussian.interpolant, x_0, gaussian.sample(n, generator), s), times


class Bent:
    """An exact map with the velocity bent by ``amount`` (a number or a tensor): no flow, not even its own."""

    def __init__(self, gaussian: Gaussian, amount: float | Tensor = 0.3) -> None:
        self.gaussian, self.interpolant, self.amount = gaussian, gaussian.interpolant, amount

    def __call__(self, x, s, t, cond=None):
        bend = torch.sin(1.3 * x + 2 * expand_like(t, x))
        return self.gaussian(x, s, t) + self.amount * expand_like(t - s, x) * bend

    def velocity(self, x, t, cond=None):
        return self.gaussian.velocity(x, t) + self.amount * torch.sin(1.3 * x + 2 * expand_like(t, x))
