"""Adaptive lambda: it meets its target, ends at 1, costs no calls and no bias, and needs fewer steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.flow.oracle import Gaussian
from fmtt.steering import adaptive
from fmtt.steering.adaptive import Adaptive

MEAN, VARIANCE = 0.5, 0.3
FLOW = Gaussian([MEAN], VARIANCE)


class Peak:
    """r(x) = -a (x - c)^2 / 2, with closed forms under N(MEAN, VARIANCE)."""

    differentiable = True

    def __init__(self, a: float, c: float = 1.5) -> None:
        self.a, self.c = a, c

    def __call__(self, x: Tensor, cond: Any = None) -> Tensor:
        return -self.a / 2 * (x[:, 0] - self.c) ** 2

    def length(self, n: int = 200_000) -> float:
        """The integral over lambda of the reward's standard deviation under its own tilt."""
        lam = ((torch.arange(n, dtype=torch.float64) + 0.5) / n) ** 2
        variance = 1 / (1 / VARIANCE + self.a * lam)
        away = variance * (MEAN / VARIANCE + self.a * lam * self.c) - self.c
        deviation = self.a / 2 * (2 * variance**2 + 4 * variance * away**2).sqrt()
        return float((deviation * 2 * lam.sqrt() / n).sum())


def tilt(reward: Any, seed: int = 0, **options: Any) -> fmtt.TiltResult:
    settings = {"num_particles": 1000, "num_steps": 32, "dtype": torch.float64, **options}
    return fmtt.tilt(FLOW, reward, generator=torch.Generator().manual_seed(seed), **settings)


def steps_of(result: fmtt.TiltResult) -> Tensor:
    """Conditional ESS (K, P) of every step."""
    disc = result.history.total_discrepancy
    return torch.exp(-disc.diff(dim=0, prepend=torch.zeros_like(disc[:1])))


def test_conditional_ess_is_its_formula() -> None:
    log_weights, increments = torch.randn(2, 3, 50, dtype=torch.float64)
    W, w = torch.softmax(log_weights, 1), increments.exp()
    expected = (W * w).sum(1) ** 2 / (W * w**2).sum(1)
    torch.testing.assert_close(adaptive.conditional_ess(log_weights, increments), expected)


@pytest.mark.parametrize("target", (0.5, 0.9, 0.99))
def test_a_step_meets_its_target(target: float) -> None:
    log_weights, values = torch.randn(2, 4, 200, dtype=torch.float64)
    values, start = 30 * values, torch.tensor([0.0, 0.1, 0.5, 0.9]).double()
    there = adaptive.largest_step(target, start, log_weights, values)
    found = adaptive.conditional_ess(log_weights, (there - start)[:, None] * values)
    torch.testing.assert_close(found, torch.full_like(found, target), atol=1e-4, rtol=0)
    easy = adaptive.largest_step(target, start, log_weights, 1e-9 * values)
    torch.testing.assert_close(easy, torch.ones(4).double())


def test_a_linear_reward_is_paced_linearly_and_a_sharp_one_is_not() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20_000, generator=draws, dtype=torch.float64)
    start, flat = torch.tensor([0.0, 0.4]).double(), torch.zeros_like(x)
    paced = adaptive.even_pace(start, flat, 0.5 * x, 10)
    torch.testing.assert_close(paced, start + (1 - start) / 10, atol=2e-3, rtol=0)
    assert adaptive.even_pace(start, flat, -100 * x**2, 10)[0] < 0.02
    torch.testing.assert_close(adaptive.even_pace(start, flat, flat, 10), start + (1 - start) / 10)
    assert (adaptive.next_strength(Adaptive(), start, flat, x, 1) == 1).all()


@pytest.mark.parametrize("gradient_every", (1, 3))
@pytest.mark.parametrize("schedule", ("adaptive", "adaptive:0.8"))
@pytest.mark.parametrize("weights", ("exact", "path", "none"))
def test_it_ends_at_one_per_population_without_another_call(
    weights: str, schedule: str, gradient_every: int
) -> None:
    if weights == "exact" and gradient_every > 1:
        return
    options = {"weights": weights, "num_steps": 12, "num_populations": 3, "gradient_every": gradient_every}
    found, fixed = (tilt(Peak(20.0), schedule=s, num_particles=50, **options) for s in (schedule, "linear"))
    strength = found.history.strength
    assert (strength[-1] == 1).all() and (strength.diff(dim=0) >= 0).all()
    assert (strength[gradient_every - 1] > 0).all()
    assert not torch.equal(strength[:, 0], strength[:, 1])
    assert found.cost.reward_calls == fixed.cost.reward_calls and found.cost.passes == fixed.cost.passes


def test_adaptation_does_not_bias_z() -> None:
    """Four steps of eight particles: mean Z over many populations against the discretised base law's."""
    reward, P, K = Peak(4.0), 10_000, 4
    draws = torch.Generator().manual_seed(9)
    x = torch.randn(400_000, 1, generator=draws, dtype=torch.float64)
    for k in range(K):
        t, h = k / K, 1 / K
        b, eps = FLOW.velocity(x, t), 1 - (k + 1) / K
        noise = torch.randn(x.shape, generator=draws, dtype=torch.float64)
        x = x + h * (b + eps * (t * b - x) / (1 - t)) + math.sqrt(2 * eps * h) * noise
    truth = torch.exp(reward(x))
    for schedule in ("adaptive", "adaptive:0.7"):
        result = tilt(
            reward,
            schedule=schedule,
            weights="path",
            num_steps=K,
            num_particles=8,
            num_populations=P,
            lookahead="denoiser",
            ess_threshold=0.8,
        )
        z = result.log_z.exp()
        error = (z.var() / P + truth.var() / len(truth)).sqrt()
        assert abs(z.mean() - truth.mean()) < 4 * error
        assert result.history.resampled.double().mean() > 0.1
        assert abs(0.9 * z.mean() - truth.mean()) > 4 * error  # a tenth off would be seen


@pytest.mark.parametrize("schedule", ("linear", "ramp:0.3", "adaptive", "adaptive:0.98", lambda t: t**2))
@pytest.mark.parametrize("sharpness", (0.0, 3.0))
def test_length_of_an_exact_map_is_the_closed_form(schedule: Any, sharpness: float) -> None:
    """It depends on the reward's variance along the tilted path alone, not on the schedule."""
    if sharpness == 0:
        reward, expected = (lambda x, c: 1.2 * x[:, 0]), 1.2 * math.sqrt(VARIANCE)
    else:
        reward, expected = Peak(sharpness), Peak(sharpness).length()
    result = tilt(reward, schedule=schedule, num_particles=10_000, num_steps=60)
    assert float(result.history.thermodynamic_length[-1, 0]) == pytest.approx(expected, rel=0.03)
    assert float(result.history.total_discrepancy[-1, 0]) > 0


@pytest.mark.parametrize("weights", ("exact", "path"))
def test_a_sharp_reward_needs_fewer_steps(weights: str) -> None:
    """The worst step of an adaptive run is better than that of a linear one with twice the steps."""
    reward, P = Peak(100.0), 16
    options = {"weights": weights, "num_particles": 250, "num_populations": P}
    few = steps_of(tilt(reward, schedule="adaptive", num_steps=24, **options)).amin(0)
    many = steps_of(tilt(reward, schedule="linear", num_steps=48, **options)).amin(0)
    assert few.mean() - many.mean() > 4 * ((few.var() + many.var()) / P).sqrt()
