"""Denoiser guidance: its law where the approximation is exact, its price, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.baselines.best_of_n import best_of_n
from fmtt.baselines.denoiser_guidance import denoiser_guidance
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian, GaussianMixture

FLOW = Gaussian([-0.8], 0.6)
SLOPE = 1.5


def linear(x: Tensor, cond: Any = None) -> Tensor:
    return SLOPE * x[:, 0]


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_it_samples_the_tilted_gaussian_when_the_reward_is_linear(run: Any, noise: float) -> None:
    """There E[e^{r(x_1)} | x_t] is e^{r(D_t(x))} up to a constant: DPS errs by its discretisation only."""
    options = {"num_samples": 8000, "num_steps": 100, "noise": noise}
    samples = run(denoiser_guidance, FLOW, linear, **options).samples[:, 0]
    tilted, _ = FLOW.tilt_linear(torch.tensor([SLOPE]))
    assert float(tilted.mean) - float(FLOW.mean) == pytest.approx(SLOPE * 0.6)
    assert float(samples.mean()) == pytest.approx(float(tilted.mean), abs=0.05)
    assert float(samples.std()) == pytest.approx(0.6**0.5, abs=0.05)


def test_half_the_guidance_moves_half_as_far(run: Any) -> None:
    options = {"num_samples": 8000, "num_steps": 30}
    means = [
        float(run(denoiser_guidance, FLOW, linear, guidance=g, **options).samples.mean())
        for g in (0.0, 0.5, 1.0)
    ]
    assert means[1] - means[0] == pytest.approx(means[2] - means[1], rel=0.05)


def test_without_guidance_it_is_the_base_sde(run: Any) -> None:
    options = {"num_samples": 6, "noise": 1.0}
    unguided = run(denoiser_guidance, FLOW, num_steps=9, guidance=0.0, **options)
    base = run(best_of_n, FLOW, steps=9, sampler="velocity", **options)
    assert torch.equal(unguided.samples, base.samples)


@pytest.mark.parametrize("step_size", ["posterior", "normalized"])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_mass_moves_to_the_reward(run: Any, mixture: GaussianMixture, step_size: str, noise: float) -> None:
    def above(guidance: float) -> float:
        options = {"num_samples": 400, "step_size": step_size, "noise": noise, "guidance": guidance}
        return float((run(denoiser_guidance, mixture, **options).samples > 0).double().mean())

    assert above(0.0) < 0.36 and above({"posterior": 1.0, "normalized": 2.0}[step_size]) > 0.7


def test_normalized_steps_do_not_feel_the_rewards_scale(run: Any, mixture: GaussianMixture) -> None:
    def samples(scale: float) -> Tensor:
        options = {"num_samples": 10, "step_size": "normalized"}
        return run(denoiser_guidance, mixture, lambda x, cond: scale * x[:, 0], **options).samples

    torch.testing.assert_close(samples(1.0), samples(1e3))


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 3 * 12 - 4), (0.0, 12)])
def test_cost_is_what_the_network_did(run: Any, counted: Any, guidance: float, passes: int) -> None:
    net = counted()
    options = {"num_samples": 10, "num_steps": 12, "guidance": guidance, "chunk_size": 4}
    cost = run(denoiser_guidance, net, net.reward, **options).cost
    net.check(cost)
    assert cost.passes == 10 * passes


def test_the_same_seed_gives_the_same_run(run: Any) -> None:
    one, same = (run(denoiser_guidance, FLOW, num_samples=4) for _ in range(2))
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, run(denoiser_guidance, FLOW, seed=1, num_samples=4).samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": "long"}, "step_size must be one of posterior, normalized"),
        ({"num_steps": 0}, "num_steps"),
        ({"noise": math.nan}, "noise"),
        ({"reward": lambda x, cond: (x[:, 0] > 0).double()}, "denoiser_guidance needs a differentiable"),
    ],
)
def test_wrong_input_is_named(run: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(denoiser_guidance, FLOW, **{"reward": linear, "num_samples": 2, **options})
