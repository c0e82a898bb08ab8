"""A map that counts what is asked of it, and a bimodal mixture with its tilts in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.flow.oracle import Gaussian, GaussianMixture
from fmtt.steering.cost import Cost


class Counted:
    """A flow map and a reward that count forwards, forwards that were recorded for a gradient, and scores."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.interpolant, self.data_shape = flow.interpolant, flow.data_shape
        self.forwards = self.recorded = self.scored = 0

    def count(self, x: Tensor, out: Tensor) -> Tensor:
        self.forwards += len(x)
        self.recorded += len(x) * out.requires_grad
        return out

    def __call__(self, x: Tensor, s: Any, t: Any, cond: Any = None) -> Tensor:
        return self.count(x, self.flow(x, s, t, cond))

    def velocity(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        return self.count(x, self.flow.velocity(x, t, cond))

    def reward(self, x: Tensor, cond: Any = None) -> Tensor:
        self.scored += len(x)
        return peak(x)

    def check(self, cost: Cost) -> None:
        """The meter shows what was counted, and no jvp."""
        assert (cost.forwards, cost.backwards) == (self.forwards, self.recorded)
        assert cost.reward_calls == self.scored and cost.jvps == 0


def peak(x: Tensor, cond: Any = None) -> Tensor:
    """-2 (x - 2)^2, of the first coordinate."""
    return -2 * (x[:, 0] - 2).square()


@pytest.fixture
def counted() -> Callable[[], Counted]:
    """A standard normal in two dimensions, counted; its map is cheap."""
    return lambda: Counted(Gaussian([0.0, 0.0], 1.0))


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """0.7 N(-1.5, 0.25) + 0.3 N(1.5, 0.25): a fresh sample is above 0 with probability about 0.3."""
    return GaussianMixture([0.7, 0.3], [[-1.5], [1.5]], [0.25, 0.25], steps=16)


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """Call a method with seed 0 in float64."""

    def run(
        method: Callable[..., Any], flow: Any, reward: Any = peak, *, seed: int = 0, **options: Any
    ) -> Any:
        settings = {"dtype": torch.float64, **options}
        return method(flow, reward, generator=torch.Generator().manual_seed(seed), **settings)

    return run
