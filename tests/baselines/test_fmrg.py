"""FMRG: deterministic after the first noise, along the flow without a pull, towards the reward with one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.baselines.fmrg import fmrg
from fmtt.errors import UserError
from fmtt.flow.oracle import GaussianMixture

VARIANTS = [
    {"gradient": "jacobian", "step": "line", "strength": 6.0},
    {"gradient": "jacobian", "step": "flow_map", "strength": 6.0},
    {"gradient": "euclidean", "step": "line", "strength": 0.3},
    {"gradient": "euclidean", "step": "flow_map", "strength": 0.3},
]


def test_without_a_pull_an_exact_maps_endpoint_is_reached(run: Any, mixture: GaussianMixture) -> None:
    """A step of the map stays on the flow; a step on the line does not, but ends where the line ends."""
    start = torch.randn(6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = mixture(start, 0.0, 1.0)
    found = run(fmrg, mixture, num_samples=6, strength=0.0, step="flow_map").samples
    torch.testing.assert_close(found, end, atol=2e-3, rtol=0)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: f"{o['gradient']}-{o['step']}")
def test_mass_moves_to_the_reward(run: Any, mixture: GaussianMixture, options: dict[str, Any]) -> None:
    def above(**strength: float) -> float:
        result = run(fmrg, mixture, num_samples=200, **{**options, **strength})
        return float((result.samples > 0).double().mean())

    assert above(strength=0.0) < 0.4 and above() > 0.85


def test_the_jacobian_pull_does_not_feel_the_rewards_scale(run: Any, mixture: GaussianMixture) -> None:
    def samples(scale: float) -> Tensor:
        return run(fmrg, mixture, lambda x, cond: scale * x[:, 0], num_samples=5).samples

    torch.testing.assert_close(samples(1.0), samples(1e3))


def test_of_the_candidates_the_best_look_ahead_goes_on(run: Any, mixture: GaussianMixture) -> None:
    options = {"num_samples": 2, "num_populations": 200, "num_steps": 4, "strength": 0.2}
    alone = run(fmrg, mixture, **options)
    chosen = run(fmrg, mixture, warmup_candidates=4, warmup_steps=1, **options)
    assert chosen.samples.shape == alone.samples.shape == (400, 1)
    assert torch.equal(chosen.population, torch.arange(200).repeat_interleave(2))
    assert chosen.history.t.tolist() == [0.125] and chosen.history.best.shape == (1, 200)
    assert float(chosen.rewards.mean()) > float(alone.rewards.mean()) + 1


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"step": "line"}, 3 * 8),
        ({"step": "flow_map"}, 4 * 8),
        ({"gradient": "euclidean"}, 8),
        ({"gradient": "euclidean", "step": "flow_map"}, 2 * 8),
        ({"warmup_candidates": 3, "warmup_steps": 5}, 3 * (3 * 5 + 1) + 3 * 3),
    ],
)
def test_cost_is_what_the_network_did(run: Any, counted: Any, options: dict[str, Any], passes: int) -> None:
    net = counted()
    settings = {"num_samples": 5, "num_steps": 8, "finish_steps": 3, "chunk_size": 2, **options}
    cost = run(fmrg, net, net.reward, num_populations=2, **settings).cost
    net.check(cost)
    assert cost.passes_per_population == 5 * (passes + 3)


def test_the_same_seed_gives_the_same_run(run: Any, mixture: GaussianMixture) -> None:
    options = {"num_samples": 3, "num_steps": 3, "warmup_candidates": 2, "warmup_steps": 2}
    one, same = (run(fmrg, mixture, **options) for _ in range(2))
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, run(fmrg, mixture, seed=1, **options).samples)


def test_each_population_keeps_its_own_condition(run: Any, mixture: GaussianMixture) -> None:
    def towards(x: Tensor, cond: Any) -> Tensor:
        return x[:, 0] * cond["sign"]

    cond = {"sign": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    options = {"num_samples": 4, "warmup_candidates": 3, "warmup_steps": 2}
    result = run(fmrg, mixture, towards, cond=cond, **options)
    assert torch.equal(result.samples[:, 0] > 0, result.population == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "riemannian"}, "gradient must be one of"),
        ({"step": "leap"}, "step must be one of"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"finish_steps": 0}, "finish_steps must be at least 1"),
        ({"guide_until": 1.0}, "guide_until"),
        ({"warmup_candidates": 2}, "warmup_steps"),
        ({"reward": lambda x, cond: (x[:, 0] > 0).double()}, "fmrg needs a differentiable reward"),
    ],
)
def test_wrong_input_is_named(
    run: Any, mixture: GaussianMixture, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(fmrg, mixture, **options)
