"""FK steering and DAS: weights exact at any number of steps, whatever the potential and the proposal.

The base SDE of a Gaussian flow stays Gaussian when it is discretised, so its tilted law is a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fmtt.baselines import particle_filter
from fmtt.baselines.das import das
from fmtt.baselines.fk_steering import POTENTIALS, fk_steering
from fmtt.flow.oracle import Gaussian, GaussianMixture
from fmtt.steering import dynamics
from fmtt.steering.result import TiltResult

P, N = 16, 2500
STRENGTH = 1.3


def reward(x: Tensor, cond: Any = None) -> Tensor:
    """1.2 x - x^2 / 2."""
    return 1.2 * x[:, 0] - x[:, 0].square() / 2


class Estimate(NamedTuple):
    """E[x], P(x > 0) and log Z, with standard errors, (3,)."""

    value: Tensor
    standard_error: Tensor


def statistics(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], (x[:, 0] > 0).double()], 1)


def estimate(result: TiltResult) -> Estimate:
    """From the spread of independent populations."""
    values = torch.cat([result.expect(statistics).value, result.log_z[:, None]], 1)
    return Estimate(values.mean(0), values.std(0) / math.sqrt(P))


def closed_form(law: GaussianMixture, strength: float) -> Tensor:
    A, a = torch.tensor([[-strength]]), torch.tensor([1.2 * strength])
    tilted, log_z = law.tilt_quadratic(A, a)
    mean, variance = tilted.means[:, 0], tilted.covariances[:, 0, 0]
    above = torch.erfc(-mean / (2 * variance).sqrt()) / 2
    return torch.stack([(tilted.weights * mean).sum(), (tilted.weights * above).sum(), log_z])


def discretised(flow: Gaussian, steps: int) -> GaussianMixture:
    """The law at t = 1 of the K-step base SDE of a Gaussian flow: affine steps keep it Gaussian."""
    mean, variance, points = 0.0, 1.0, torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for k in range(steps):
        t, h = k / steps, 1 / steps
        eps = 1 - t - h
        b = flow.velocity(points, t)
        moved = points + h * (b + eps * (t * b - points) / (1 - t))
        offset, slope = float(moved[0]), float(moved[1] - moved[0])
        mean, variance = offset + slope * mean, slope**2 * variance + 2 * eps * h
    return GaussianMixture([1.0], [[mean]], [variance])


def deviations(found: Estimate, truth: Tensor) -> Tensor:
    return (found.value - truth).abs() / found.standard_error


def sample(run: Callable[..., Any], flow: Any, method: Any = fk_steering, **options: Any) -> TiltResult:
    settings = {"num_particles": N, "num_populations": P, "num_steps": 8, "ess_threshold": 0.9, **options}
    if method is fk_steering:
        settings = {"strength": STRENGTH, **settings}
    return run(method, flow, reward, **settings)


FLOW = Gaussian([-0.8], 0.6)
# The sum's potentials grow as the square of the number of looks: with strength 1 nothing survives eight.
VARIANTS = [
    {"potential": "difference"},
    {"potential": "max"},
    {"potential": "sum", "strength": 0.15},
    {"potential": "sum", "every": 3, "strength": 0.5},
    {"potential": "final"},
    {"potential": "max", "every": 3},
    {"potential": "max", "lookahead": "none", "every": 2},
    {"potential": "difference", "guidance": 0.7},
    {"potential": "difference", "lookahead": "flow_map", "guidance": 1.0},
    {"method": das},
    {"method": das, "gamma": 0.3},
    {"method": das, "guidance": 0.0},
]


def name(options: dict[str, Any]) -> str:
    return "-".join(getattr(value, "__name__", str(value)) for value in options.values())


@pytest.mark.parametrize("options", VARIANTS, ids=name)
def test_weights_are_exact_for_the_discretised_base_law(run: Any, options: dict[str, Any]) -> None:
    result = sample(run, FLOW, **options)
    assert bool(result.history.resampled.any()) == (options.get("potential") != "final")
    strength = 1.0 if "method" in options else options.get("strength", STRENGTH)
    assert (deviations(estimate(result), closed_form(discretised(FLOW, 8), strength)) < 4).all()


def test_eight_steps_have_a_law_of_their_own() -> None:
    """The check above can tell the discretised law from the continuous one."""
    exact = closed_form(GaussianMixture([1.0], [[-0.8]], [0.6]), STRENGTH)
    assert ((closed_form(discretised(FLOW, 8), STRENGTH) - exact).abs() > 0.02).any()


@pytest.mark.slow
@pytest.mark.parametrize("method", [*POTENTIALS, "das"])
def test_many_steps_reach_the_tilted_mixture(run: Any, mixture: GaussianMixture, method: str) -> None:
    every = 80 if method == "sum" else 40
    options = {"method": das} if method == "das" else {"potential": method, "every": every, "strength": 1.0}
    found, truth = estimate(sample(run, mixture, num_steps=200, **options)), closed_form(mixture, 1.0)
    assert (deviations(found, truth) < 4).all(), (found, truth)
    assert float(deviations(found, closed_form(mixture, 0.0))[0]) > 20


@pytest.mark.parametrize("potential", ["max", "sum"])
def test_without_the_last_division_the_check_fails(
    run: Any, monkeypatch: pytest.MonkeyPatch, potential: str
) -> None:
    right = particle_filter.Filter.move

    def undivided(self: Any, problem: Any, particle: Any, k: int, generator: Any) -> Any:
        moved, increment, pull = right(self, problem, particle, k, generator)
        return moved, increment + particle.product * (k == 7), pull

    monkeypatch.setattr(particle_filter.Filter, "move", undivided)
    found = estimate(sample(run, FLOW, potential=potential, strength=0.15))
    assert (deviations(found, closed_form(discretised(FLOW, 8), 0.15)) > 8).any()


def test_increments_of_unresampled_steps_are_not_lost(run: Any) -> None:
    """A threshold so low that hardly any step resamples: all weight is carried to the end."""
    result = sample(run, FLOW, potential="difference", ess_threshold=0.0)
    assert not bool(result.history.resampled.any())
    torch.testing.assert_close(result.log_weights, STRENGTH * result.rewards.double())


def test_a_guided_proposal_without_its_density_ratio_fails(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = dynamics.guided
    monkeypatch.setattr(dynamics, "guided", lambda *a: (right(*a)[0], torch.zeros(P * N).double()))
    found = estimate(sample(run, FLOW, method=das))
    assert (deviations(found, closed_form(discretised(FLOW, 8), 1.0)) > 8).any()
