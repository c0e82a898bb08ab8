"""Checks that every differentiable reward can be put to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fmtt.types import Reward


@pytest.fixture
def check_gradient() -> Callable[[Reward, Tensor], None]:
    """``check_gradient(reward, x)``: the gradient at x (B, *D) against central differences, in float64."""

    def check(reward: Reward, x: Tensor) -> None:
        generator = torch.Generator().manual_seed(7)
        x = x.double().requires_grad_(True)
        (gradient,) = torch.autograd.grad(reward(x, None).sum(), x)
        assert gradient.flatten(1).norm(dim=1).min() > 0
        for _ in range(3):
            direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            h = 1e-5
            with torch.no_grad():
                difference = (reward(x + h * direction, None) - reward(x - h * direction, None)) / (2 * h)
            expected = (gradient * direction).flatten(1).sum(1)
            torch.testing.assert_close(difference, expected, rtol=1e-6, atol=1e-7)

    return check
