"""Best of N: the maximum, priced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.baselines.best_of_n import best_of_n
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian

FLOW = Gaussian([0.0], 1.0)


def reward(x: Tensor, cond: Any = None) -> Tensor:
    return x[:, 0]


def run(**options: Any) -> fmtt.SearchResult:
    generator = torch.Generator().manual_seed(0)
    settings = {"num_samples": 16, "num_populations": 2000, "dtype": torch.float64, **options}
    return best_of_n(FLOW, reward, generator=generator, **settings)


@pytest.mark.parametrize(
    "options",
    (
        {},
        {"steps": 1},
        {"sampler": "velocity", "steps": 60},
        {"sampler": "velocity", "steps": 60, "noise": 1.0},
    ),
)
def test_the_best_is_the_maximum_of_n_normals(options: dict[str, Any]) -> None:
    found = run(**options)
    assert torch.equal(found.best_rewards, found.rewards.reshape(2000, 16).amax(1))
    assert torch.equal(reward(found.best), found.best_rewards)
    assert float(found.best_rewards.mean()) == pytest.approx(1.766, abs=0.06)


def test_cost_is_samples_times_steps() -> None:
    assert run(steps=4).cost.passes_per_population == 64
    cost = run(sampler="velocity", steps=50).cost
    assert cost.passes_per_population == 800 and cost.reward_calls == 32_000 and cost.backwards == 0


def test_chunks_change_nothing() -> None:
    for options in ({}, {"sampler": "velocity", "noise": 1.0}):
        torch.testing.assert_close(run(**options).samples, run(chunk_size=1000, **options).samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ode"}, "sampler"),
        ({"noise": 1.0}, "noise"),
        ({"steps": 0}, "at least 1"),
        ({"num_samples": 0}, "at least 1"),
    ],
)
def test_wrong_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**options)
