"""The FMTT authors' two toy settings, with our parameters where theirs are not published, and the truth.

Eight modes. Law: equal Gaussians of deviation 0.55 at angles k pi / 4 on a circle of radius 4.8. Reward: -y²
where the first coordinate y is negative, else 0. Run: 400 steps, noise eps_t = 3 alpha_t, no resampling.
Two views: the particles as guidance left them, before any weight, which is what the published row must show
(right weights agree with the truth for every look-ahead); and the weighted results. There is little to win in
the second: weighing draws of the law by e^r and nothing else already has an ESS of 0.61 here.

Cycloid ring. Law: 120 equal Gaussians of deviation 0.05 along the curve of radius 1 + 0.08 cos 12 theta.
Reward: 10 g(x), g a sum of two bumps exp(-|x - c|² / (2 * 0.2²)) centred on the curve at 40 and 160 degrees;
they say nothing before a sample has come near. Run: noise 0.1 and threshold 0.9, as published. View: the
weighted results, since particles are resampled by weights all along.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation.toys_law import RingLaw
from fmtt.types import Cond

RING_RADIUS, RING_DEVIATION = 4.8, 0.55
CYCLOID_AMPLITUDE, CYCLOID_PETALS, CYCLOID_DEVIATION, CYCLOID_CENTRES = 0.08, 12, 0.05, 120
BUMP_ANGLES, BUMP_WIDTH, REWARD_SCALE = (40.0, 160.0), 0.2, 10.0
MMD_BANDWIDTH = 0.2


def cycloid_curve(angle: Tensor) -> Tensor:
    """Points (K, 2) of the curve at angles (K,) in radians."""
    radius = 1 + CYCLOID_AMPLITUDE * torch.cos(CYCLOID_PETALS * angle)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


class RingReward:
    """r = -y² where y, the first coordinate, is negative."""

    differentiable = True
    scale, upper = 1.0, 0.0

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        return -x1[:, 0].clamp_max(0).square()


class BumpReward:
    """r = REWARD_SCALE g, g the sum of two bumps on the cycloid."""

    differentiable = True
    scale, upper = REWARD_SCALE, REWARD_SCALE * 1.01

    def __init__(self) -> None:
        self.centres = cycloid_curve(torch.tensor(BUMP_ANGLES, dtype=torch.float64).deg2rad())

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        square = (x1[:, None] - self.centres.to(x1)).square().sum(2)  # (B, 2)
        return REWARD_SCALE * torch.exp(square / (-2 * BUMP_WIDTH**2)).sum(1)


class Toy(NamedTuple):
    """A law, a reward with values up to ``reward.upper``, and how the sampler runs on it.

    Attributes:
        threshold: of the ESS; 0 never resamples.
        bandwidth: of the MMD's kernel, data units.
        views: what is compared with the truth, "standing" particles or "weighted" results; first what the
            published row shows.
    """

    name: str
    law: RingLaw
    reward: RingReward | BumpReward
    noise: float
    threshold: float
    bandwidth: float
    views: tuple[str, ...]


@cache
def ring() -> Toy:
    """The eight modes."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    centres = RING_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    law = RingLaw(centres, RING_DEVIATION, 8, table=(32, 64, 64))
    return Toy("ring", law, RingReward(), 3.0, 0.0, MMD_BANDWIDTH * RING_RADIUS, ("standing", "weighted"))


@cache
def cycloid() -> Toy:
    """The cycloid ring; noise and threshold are the authors' (stochasticity 0.1, threshold 0.9)."""
    angle = torch.arange(CYCLOID_CENTRES, dtype=torch.float64) * (2 * math.pi / CYCLOID_CENTRES)
    law = RingLaw(cycloid_curve(angle), CYCLOID_DEVIATION, CYCLOID_PETALS, table=(36, 96, 16))
    return Toy("cycloid", law, BumpReward(), 0.1, 0.9, MMD_BANDWIDTH, ("weighted",))


class Truth(NamedTuple):
    """Of the tilted law, by quadrature.

    Attributes:
        above, reward: P(first coordinate > 0) and E[r] / scale.
        plain_ess: ESS (fraction) of draws of the law itself under the weights e^r.
    """

    above: float
    reward: float
    log_z: float
    plain_ess: float


@cache
def truth(toy: Toy, *, cells: int = 500) -> Truth:
    """Integrate over the plane by the midpoint rule, a border of cells lying on each axis."""
    width = 2 * toy.law.far / cells
    line = (torch.arange(cells, dtype=torch.float64) + 0.5) * width - toy.law.far
    x = torch.cartesian_prod(line, line)
    factor = -1 / (2 * toy.law.deviation**2)
    along = torch.exp(factor * (line[:, None] - toy.law.centres[:, :1].mT).square())  # (cells, K)
    across = torch.exp(factor * (line[:, None] - toy.law.centres[:, 1:].mT).square())
    density = (along @ across.mT).reshape(-1) / (len(toy.law.centres) * 2 * math.pi * toy.law.deviation**2)
    r = toy.reward(x)
    mass = density * r.exp() * width**2
    z = mass.sum()
    reward = (mass * r).sum() / z / toy.reward.scale
    plain_ess = z.square() / (mass * r.exp()).sum()
    return Truth(float(mass[x[:, 0] > 0].sum() / z), float(reward), float(z.log()), float(plain_ess))


def exact_samples(toy: Toy, n: int, generator: torch.Generator) -> Tensor:
    """``n`` independent draws of the tilted law, (n, 2), by rejection."""
    found, count, law = [], 0, toy.law.oracle()
    while count < n:
        x = law.sample(4 * n, generator)
        u = torch.rand(len(x), generator=generator, dtype=x.dtype)
        found.append(x[u.log() < toy.reward(x) - toy.reward.upper])
        count += len(found[-1])
    return torch.cat(found)[:n]
