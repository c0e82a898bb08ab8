"""Adaptive lambda: the next strength of the reward from the look-ahead rewards already computed.

Before a step, each population knows f = r(l_t(x)) of its particles and their weights, so for any larger
lambda' it can tell what weighing by e^{(lambda' - lambda) f} would do: the conditional effective sample size
    CESS = (sum W w)^2 / sum W w^2,   w = e^{(lambda' - lambda) f}        (Zhou, Johansen and Aston 2016)
and sd_{lambda'}(f), the speed at which thermodynamic length passes. No network and no reward is called.

What is exact, and what adaptation costs: a particle's weight divided by e^{lambda f} does not depend on the
schedule, so with weights="path" the estimates of Z and of unnormalised expectations stay unbiased for any
lambda that depends on a population's past alone, at any number of steps; with weights="exact" the same
holds as steps shrink (lambda moves monotonically, so it adds no Ito correction). The cost is a schedule that
differs from population to population and from seed to seed, and softmaxes of N numbers per step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GRID = torch.cat([torch.zeros(1, dtype=torch.float64), torch.logspace(-6, 0, 49, dtype=torch.float64)])
"""Where in the rest of lambda the speed is looked at: finest next to where we are."""
TRUSTED = 8
"""Effective particles below which the reweighted population says nothing about the speed."""
HALVINGS = 24


class Adaptive(NamedTuple):
    """How lambda is chosen online; it always ends at 1.

    Attributes:
        target: conditional ESS (fraction) that a step may not go below while the steps that are left
            suffice for it; where they do not, the rest is spread evenly. None always spreads it evenly,
            at constant thermodynamic speed: the schedule of least total discrepancy.
    """

    target: float | None = None


def conditional_ess(log_weights: Tensor, log_increments: Tensor) -> Tensor:
    """CESS (P,) in (0, 1] of increments (P, N) under the weights held before them (P, N)."""
    return _fraction(torch.log_softmax(log_weights, 1), log_increments)


def _fraction(log_p: Tensor, log_increments: Tensor) -> Tensor:
    first = torch.logsumexp(log_p + log_increments, 1)
    return (2 * first - torch.logsumexp(log_p + 2 * log_increments, 1)).exp().clamp_max(1.0)


def next_strength(
    rule: Adaptive, strength: Tensor, log_weights: Tensor, values: Tensor, steps_left: int
) -> Tensor:
    """The next lambda (P,) of each population, float64, not below ``strength``.

    Args:
        strength: lambda now (P,).
        log_weights, values: the particles' weights and f, (P, N).
        steps_left: changes of lambda still to come, this one included; at 1 the answer is 1.
    """
    if steps_left <= 1:
        return torch.ones_like(strength)
    following = even_pace(strength, log_weights, values, steps_left)
    if rule.target is not None:
        following = torch.maximum(following, largest_step(rule.target, strength, log_weights, values))
    return following.clamp_max(1.0)


def largest_step(target: float, strength: Tensor, log_weights: Tensor, values: Tensor) -> Tensor:
    """The largest lambda' (P,) up to 1 whose CESS is at least ``target``, by bisection.

    CESS decreases in lambda', since the mean of f under a tilted population increases with the tilt.
    """
    low, high = torch.zeros_like(strength), 1 - strength
    log_p = torch.log_softmax(log_weights, 1)
    whole = _fraction(log_p, high[:, None] * values) >= target
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = _fraction(log_p, middle[:, None] * values) >= target
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where(whole, torch.ones_like(strength), strength + low)


def even_pace(strength: Tensor, log_weights: Tensor, values: Tensor, steps_left: int) -> Tensor:
    """The lambda' (P,) that leaves 1 / steps_left of the remaining thermodynamic length behind.

    The speed sd_{lambda'}(f) is that of the present particles reweighted. Where too few of them carry that
    weight it is continued as lambda'^(-1/2), between the constant speed of a linear reward and the
    lambda'^(-1) of a sharp peak; the next steps, better placed, correct it.
    """
    grid = GRID.to(values.device)
    ahead = (1 - strength)[:, None] * grid  # (P, M)
    p = torch.softmax(log_weights[:, None, :] + ahead[..., None] * values[:, None, :], 2)  # (P, M, N)
    mean = (p * values[:, None, :]).sum(2, keepdim=True)
    speed = (p * (values[:, None, :] - mean).square()).sum(2).sqrt()  # (P, M)
    effective = 1 / p.square().sum(2)
    floor = (effective[:, :1] / 2).clamp_max(min(TRUSTED, values.shape[1] / 4))
    known = (effective >= floor).cumprod(1)
    last = (known.sum(1, keepdim=True) - 1).clamp_min(1)
    at = (strength[:, None] + ahead).gather(1, last)
    continued = speed.gather(1, last) * (at / (strength[:, None] + ahead).clamp_min(1e-300)).sqrt()
    speed = torch.where(known.bool() | (grid == 0), speed, continued)
    length = torch.cumulative_trapezoid(speed, ahead, dim=1)
    length = torch.cat([torch.zeros_like(length[:, :1]), length], 1)
    wanted = length[:, -1:] / steps_left
    right = torch.searchsorted(length, wanted).clamp(1, length.shape[1] - 1)
    a, b = length.gather(1, right - 1), length.gather(1, right)
    x, y = ahead.gather(1, right - 1), ahead.gather(1, right)
    step = x + (y - x) * ((wanted - a) / (b - a).clamp_min(1e-300)).clamp(0, 1)
    even = (1 - strength) / steps_left  # where every particle has the same reward
    return strength + torch.where(wanted > 0, step, even[:, None])[:, 0]
