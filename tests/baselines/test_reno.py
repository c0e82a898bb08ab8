"""ReNO: the ascent climbs, the norm stays a noise's, the best iterate is returned, the price is right."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.baselines.reno import clipped, norm_gradient, reno
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian, GaussianMixture

FLOW = Gaussian([0.0, 0.0], 1.0)
"""Its map from 0 to 1 is the identity, so the noise is the sample."""


def first(x: Tensor, cond: Any = None) -> Tensor:
    return x[:, 0]


def test_every_noise_climbs_to_the_peak(run: Any) -> None:
    options = {"num_samples": 50, "learning_rate": 0.05, "clip": 2.0, "norm_weight": 0.0}
    before = run(reno, FLOW, iterations=1, **options)
    after = run(reno, FLOW, iterations=60, **options)
    assert bool((after.rewards >= before.rewards).all())
    assert float((before.samples[:, 0] - 2).abs().max()) > 2
    assert float((after.samples[:, 0] - 2).abs().max()) < 0.05


def test_it_climbs_through_the_map(run: Any, mixture: GaussianMixture) -> None:
    options = {"num_samples": 20, "learning_rate": 0.3, "clip": 1.0, "steps": 2}
    assert float(run(reno, mixture, iterations=1, **options).rewards.mean()) < -10
    assert float(run(reno, mixture, iterations=8, **options).rewards.mean()) > -1


def test_the_best_iterate_is_returned(run: Any) -> None:
    """Steps far too long overshoot; what comes back is the best state on the way."""
    result = run(reno, FLOW, num_samples=1, num_populations=30, iterations=12, learning_rate=3.0, clip=1.0)
    assert torch.equal(result.best_rewards, result.history.best.amax(0))
    assert bool((result.history.best[-1] < result.best_rewards).any())


def test_the_regulariser_keeps_a_noise_as_long_as_noise_is(run: Any) -> None:
    """Under a reward for length, |x| - w (|x|^2 / 2 - 7 log |x|) has its maximum at 3.2 for w = 1."""
    flow = Gaussian([0.0] * 8, 1.0)
    options = {"num_samples": 50, "iterations": 40, "learning_rate": 0.1, "clip": math.inf}

    def longest(norm_weight: float) -> float:
        result = run(reno, flow, lambda x, cond: x.norm(dim=1), norm_weight=norm_weight, **options)
        return float(result.samples.norm(dim=1).median())

    assert longest(0.0) > 10 and longest(1.0) < 4


def test_the_norm_gradient_is_that_of_a_normals_norm() -> None:
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    norm = x.flatten(1).norm(dim=1)
    (expected,) = torch.autograd.grad((norm.square() / 2 - 5 * norm.log()).sum(), x)
    torch.testing.assert_close(norm_gradient(x.detach()), expected)
    assert bool(torch.isfinite(norm_gradient(torch.zeros(2, 3))).all())


def test_clipping_is_per_sample() -> None:
    short, long = torch.tensor([[0.03, 0.04]]), torch.tensor([[3.0, 4.0]])
    found = clipped(torch.cat([short, long, 0 * short]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[0.03, 0.04], [0.06, 0.08], [0.0, 0.0]]))


def test_populations_do_not_touch_each_other(run: Any) -> None:
    """A sample's iterates do not depend on which others share the batch."""
    options = {"iterations": 5, "learning_rate": 0.5}
    many = run(reno, FLOW, num_samples=6, **options)
    chunks = run(reno, FLOW, num_samples=6, chunk_size=1, **options)
    torch.testing.assert_close(many.samples, chunks.samples)


@pytest.mark.parametrize(("iterations", "steps"), [(1, 4), (6, 1), (6, 3)])
def test_cost_is_what_the_network_did(run: Any, counted: Any, iterations: int, steps: int) -> None:
    net = counted()
    options = {"num_samples": 5, "iterations": iterations, "steps": steps, "chunk_size": 2}
    cost = run(reno, net, net.reward, num_populations=2, **options).cost
    net.check(cost)
    assert cost.passes_per_population == 5 * steps * (3 * iterations - 2)


def test_the_same_seed_gives_the_same_run(run: Any) -> None:
    one, same = (run(reno, FLOW, num_samples=4, iterations=5) for _ in range(2))
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.samples, run(reno, FLOW, seed=1, num_samples=4, iterations=5).samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"norm_weight": -0.1}, "norm_weight"),
        ({"reward": lambda x, cond: (x[:, 0] > 0).double()}, "reno needs a differentiable reward"),
    ],
)
def test_wrong_input_is_named(run: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(reno, FLOW, **{"reward": first, **options})
