"""What a budget is counted in: network passes, reward calls or seconds, all turned into passes.

Methods choose their sizes from a budget in network passes. A budget of reward calls is the largest number of
passes whose run makes no more calls, found on a network that costs nothing; one of seconds is turned into
passes at the pace that the method had on the real network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmtt.baselines import budget
from fmtt.flow.interpolant import Interpolant, Linear
from fmtt.types import Cond, FlowMap, Reward, Time

MOST_PASSES_PER_CALL = 256
LOOK_ON = 4.0
"""Times the root of a budget: how far beyond the first one with too many calls a later one may have fewer.
Numbers of steps grow as the root, and a run that gets a step more has fewer particles."""
PACE_PASSES = 256
"""The budget at which a method's seconds per pass are measured."""


class _Still:
    """A flow map that leaves every point where it is: for counting calls."""

    def __init__(self) -> None:
        self.interpolant: Interpolant = Linear()
        self.data_shape = (1,)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        return 1.0 * x

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return 0.0 * x


class _Sum:
    """A reward for counting calls: with or without a gradient, or, where that is None, to be tried."""

    def __init__(self, differentiable: bool | None) -> None:
        self.differentiable = differentiable

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        return x1.flatten(1).sum(1)


def reward_calls(method: str, passes: int, differentiable: bool | None = None) -> float:
    """Reward calls that one run of ``method`` makes on ``passes`` network passes; 0 if they are too few.

    Args:
        differentiable: of the reward: without a gradient, some methods make fewer calls. None if only a
            trial can tell, which is a call itself.
    """
    try:
        result = budget.run(
            method,
            _Still(),
            _Sum(differentiable),
            budget=passes,
            num_populations=1,
            generator=torch.Generator().manual_seed(0),
        )
    except budget.TooSmall:
        return 0.0
    return float(result.cost.reward_calls)


def passes_for_calls(method: str, calls: float, differentiable: bool | None = None) -> int:
    """The largest number of passes on which ``method`` makes at most ``calls`` reward calls.

    By bisection, and then by looking on from there, since calls do not always grow with passes.
    """
    low, high = 0, max(1, int(calls * MOST_PASSES_PER_CALL))
    while high - low > 1:
        middle = (low + high) // 2
        if reward_calls(method, middle, differentiable) <= calls:
            low = middle
        else:
            high = middle
    further = range(low + int(LOOK_ON * low**0.5), low, -1)
    return next((p for p in further if reward_calls(method, p, differentiable) <= calls), low)


def pace(method: str, flow_map: FlowMap, reward: Reward, runs: int, **keywords: Any) -> float:
    """Seconds per pass and run of ``method`` on the real network, in a batch of ``runs``; the second of two
    measurements, since the first one warms up."""
    seconds, passes = 0.0, 1.0
    for _ in range(2):
        result = budget.run(method, flow_map, reward, budget=PACE_PASSES, num_populations=runs, **keywords)
        seconds, passes = result.cost.seconds, result.cost.passes_per_population
    return seconds / runs / passes
