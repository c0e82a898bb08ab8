"""A normalised gradient step is as long as it says, whatever the scale of the reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian
from fmtt.steering.kernel import Kernel, normalized_shift

FLOW = Gaussian([0.0, 0.0], 1.0)
TARGET = torch.tensor([1.9, -1.9], dtype=torch.float64)


def found(step_size: str, scale: float) -> Tensor:
    def reward(x: Tensor, cond: Any = None) -> Tensor:
        return -scale * (x - TARGET).square().sum(1)

    result = fmtt.search(
        FLOW,
        reward,
        num_particles=6,
        keep=2,
        rounds=3,
        kernel="renoise",
        step_size=step_size,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    return result.samples


def test_the_scale_of_the_reward_does_not_matter() -> None:
    torch.testing.assert_close(found("normalized", 1.0), found("normalized", 64.0))
    assert (found("gradient", 1.0) - found("gradient", 64.0)).abs().max() > 0.1


def test_the_length_is_in_standard_deviations_of_the_noise() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]])
    shift = normalized_shift(gradient, Kernel(torch.zeros(3, 2), 0.25), 2.0)
    torch.testing.assert_close(shift, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="step_size must be one of gradient, normalized, got 'unit'"):
        found("unit", 1.0)
