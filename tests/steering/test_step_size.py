"""Steps that are normalised or clipped are as long as they say, in a search and in a tilt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian
from fmtt.steering.kernel import Kernel
from fmtt.steering.shift import Shift, guided, shift_of
from fmtt.tensor import expand_like

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


def step(step_size: str, gradient: Tensor, guidance: float = 2.0, strength: float = 0.5) -> Tensor:
    """The increment of a step of noise variance 1/4."""
    kernel = Kernel(torch.zeros_like(gradient), 0.25)
    shift: Shift = shift_of(gradient, kernel, 0.1, strength, guidance, 0.0, step_size)
    factor = torch.as_tensor(shift.factor, dtype=gradient.dtype).expand(len(gradient))
    found = expand_like(factor, gradient) * gradient
    squares = found.double().square().sum(1)
    torch.testing.assert_close(shift.length_squared.expand_as(squares), squares)
    return found


def test_a_normalised_length_is_in_standard_deviations_of_the_noise() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(step("normalized", gradient), expected)
    torch.testing.assert_close(step("normalized", gradient, strength=0.01), expected)
    torch.testing.assert_close(step("normalized", gradient.double()), expected.double())


def test_a_clipped_step_is_the_gradients_own_until_it_is_too_long() -> None:
    gradient = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 0.0]])
    own = 0.25 / 2 * 0.5 * gradient
    torch.testing.assert_close(step("gradient", gradient, guidance=1.0), own)
    clipped = step("clipped", gradient)
    torch.testing.assert_close(clipped, torch.tensor([[0.1875, 0.25], [0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(clipped[0], own[0])


@pytest.mark.parametrize("step_size", ["clipped", "normalized"])
@pytest.mark.parametrize("weights", ["exact", "paper"])
def test_only_path_weights_allow_them(step_size: str, weights: str) -> None:
    options = {"num_particles": 4, "num_steps": 3, "step_size": step_size, "weights": weights}
    with pytest.raises(UserError, match=f"step_size='{step_size}' .*: use weights='path'"):
        fmtt.tilt(FLOW, lambda x, cond=None: -x.square().sum(1), **options)  # type: ignore[arg-type]


def test_a_drift_of_given_length_is_refused() -> None:
    options: dict[str, Any] = {"num_particles": 4, "num_steps": 3, "chi": 0.1, "weights": "path"}
    with pytest.raises(UserError, match="chi contradicts step_size='normalized'"):
        fmtt.tilt(FLOW, lambda x, cond=None: -x.square().sum(1), step_size="normalized", **options)


@pytest.mark.parametrize("step_size", ["clipped", "normalized"])
@pytest.mark.parametrize("size", [1e20, 1e-25])
def test_no_gradient_is_too_long_or_too_short_to_measure(step_size: str, size: float) -> None:
    shift = shift_of(
        torch.tensor([[size, 0.0]]), Kernel(torch.zeros(1, 2), 0.25), 0.1, 1e30, 2.0, 0.0, step_size
    )
    torch.testing.assert_close(shift.length_squared, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_as_far_as_is_weighed(dtype: torch.dtype) -> None:
    gradient = torch.tensor([[1e-6, 0.0], [1e-6, 1e-6]], dtype=dtype)
    kernel, noise = Kernel(torch.zeros(2, 2, dtype=dtype), 0.25), torch.zeros(2, 2, dtype=dtype)
    shift = shift_of(gradient, kernel, 0.1, 1.0, 2.0, 0.0, "normalized")
    moved, log_ratio = guided(kernel, shift, noise)
    torch.testing.assert_close(moved.double().norm(dim=1), torch.ones(2).double(), rtol=2.0**-8, atol=0)
    torch.testing.assert_close(log_ratio, torch.full((2,), -2.0, dtype=torch.float64))


def test_a_negative_strength_is_clipped_too() -> None:
    gradient = torch.tensor([[5.0, 0.0], [50.0, 0.0]])
    clipped = step("clipped", gradient, strength=-0.5)
    torch.testing.assert_close(clipped, torch.tensor([[-0.3125, 0.0], [-1.0, 0.0]]))
    with pytest.raises(UserError, match="length of a clipped step, must not be negative"):
        options: dict[str, Any] = {"num_particles": 4, "keep": 2, "rounds": 2, "guidance": -1.0}
        fmtt.search(FLOW, lambda x, cond=None: x[:, 0], step_size="clipped", **options)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="step_size must be one of gradient, clipped, normalized, got 'unit'"):
        found("unit", 1.0)
