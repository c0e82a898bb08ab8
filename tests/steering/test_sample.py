"""Few-step sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fmtt
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian

FLOW = Gaussian([0.7, -0.2], [0.3, 1.4])


@pytest.mark.parametrize("steps", (1, 4))
def test_samples_follow_the_law(steps: int, generator: torch.Generator) -> None:
    x = fmtt.sample(FLOW, 50_000, steps=steps, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(x.mean(0), FLOW.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(x.var(0), FLOW.covariance.diagonal(), atol=0.03, rtol=0)


def test_seed_and_chunks(product_mixture: type) -> None:
    flow = product_mixture(2)
    draws = [
        fmtt.sample(flow, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64, chunk_size=c)
        for c in (None, None, 4)
    ]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


def test_conditions_are_one_row_or_one_per_sample() -> None:
    cond = {"a": torch.zeros(5)}
    assert fmtt.sample(FLOW, 5, cond=cond).shape == (5, 2)
    assert fmtt.sample(FLOW, 3, cond={"a": torch.zeros(1)}).shape == (3, 2)
    with pytest.raises(UserError, match="cond"):
        fmtt.sample(FLOW, 4, cond=cond)


@pytest.mark.parametrize("options", ({"num_samples": 0}, {"num_samples": 2, "steps": 0}))
def test_counts_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        fmtt.sample(FLOW, **options)
