"""The reward: readings, gradient, and the closed-form tilted law."""

from __future__ import annotations

import math

import pytest
import torch

from fmtt.errors import UserError
from fmtt.rewards import clock, describe
from fmtt.rewards.clock_reward import ClockReward, read_hands, tilted_time_density


def angle_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Degrees between two angles in radians."""
    return torch.rad2deg(((a - b + math.pi) % (2 * math.pi) - math.pi).abs())


def clocks(time: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return clock.render(clock.Clock(time, torch.rand(len(time), clock.NUM_SHADES, generator=generator)))


def test_readings_are_near_the_truth():
    time = torch.arange(clock.MINUTES).float()
    hour, minute = read_hands(clocks(time))
    true_hour, true_minute = clock.hand_angles(time)
    assert angle_error(minute, true_minute).max() < 2
    apart = angle_error(true_hour, true_minute) > 45  # else the minute hand covers part of the hour hand
    assert angle_error(hour, true_hour)[apart].max() < 3
    assert angle_error(hour, true_hour).max() < 20


@pytest.mark.parametrize("target", ["3:47", "10:10"])
def test_the_reward_is_highest_at_its_target_and_within_its_range(target: str):
    reward = ClockReward(target, sharpness=7.0)
    time = torch.arange(0, clock.MINUTES, 0.5)
    score = reward(clocks(time))
    assert clock.time_difference(time[score.argmax()], reward.target).abs() <= 2
    assert score.max() <= 0 and score.min() >= -14
    assert score.max() > -0.1


def test_sharpness_scales_and_an_empty_image_scores_like_a_quarter_turn():
    images = clocks(torch.tensor([227.0, 30.0]))
    torch.testing.assert_close(ClockReward(sharpness=10.0)(images), 5 * ClockReward(sharpness=2.0)(images))
    assert ClockReward(sharpness=3.0)(torch.zeros(1, 3, 32, 32)).item() == pytest.approx(-3)


def test_gradient_matches_finite_differences():
    reward = ClockReward(sharpness=5.0)
    generator = torch.Generator().manual_seed(2)
    time = torch.tensor([100.0, 227.0, 400.0])
    x = clocks(time).double() + 0.05 * torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(reward(x).sum(), x)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    h = 1e-6
    difference = (reward(x + h * direction) - reward(x - h * direction)) / (2 * h)
    expected = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(difference, expected, rtol=2e-4, atol=1e-7)
    assert gradient.flatten(1).norm(dim=1).min() > 0


def test_gradient_is_finite_where_there_is_nothing_to_read():
    x = torch.zeros(2, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(ClockReward()(x).sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("sharpness", [3.0, 8.0])
def test_tilted_law_matches_importance_weighted_prior_samples(sharpness: float):
    """E_tilted[f] for the hit indicator and two smooth functions, within four standard errors."""
    reward = ClockReward("3:47", sharpness)
    grid, probability = tilted_time_density(reward, shades=12)
    assert probability.sum().item() == pytest.approx(1, abs=1e-9)
    generator = torch.Generator().manual_seed(11)
    n = 12_000
    time = clock.time_quantile(torch.rand(n, generator=generator, dtype=torch.float64)).float()
    shades = torch.rand(n, clock.NUM_SHADES, generator=generator)
    parts = zip(time.split(2000), shades.split(2000), strict=True)
    weight = torch.cat([reward(clock.render(clock.Clock(t, s))) for t, s in parts]).double().exp()

    def functions(t: torch.Tensor) -> torch.Tensor:
        hour, _ = clock.hand_angles(t.double())
        near = (clock.time_difference(t, reward.target).abs() <= 10).double()
        return torch.stack([near, hour.cos(), hour.sin()])

    values = functions(time)
    estimate = (values * weight).sum(1) / weight.sum()
    error = ((values - estimate[:, None]) * weight).square().sum(1).sqrt() / weight.sum()
    exact = functions(grid) @ probability
    assert (error < 0.05).all()
    assert ((estimate - exact).abs() < 4 * error).all(), (estimate, exact, error)


def test_tilting_moves_the_law_to_the_target():
    reward = ClockReward("3:47", 40.0)
    grid, probability = tilted_time_density(reward, shades=4)
    near = clock.time_difference(grid, reward.target).abs() <= 10
    assert probability[near].sum() > 0.9


@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wrong_sharpness_is_refused(sharpness: float):
    with pytest.raises(UserError, match="sharpness must be positive"):
        ClockReward(sharpness=sharpness)


def test_it_describes_itself():
    reward = ClockReward("10:10")
    described = describe(reward)
    assert described == describe(ClockReward) and described.summary == "clocks that show a given time"
    assert described.differentiable and reward.differentiable and described.space == "pixels"
    assert described.value_range == (-math.inf, 0.0)
    assert (reward(clocks(torch.arange(0.0, 720.0, 45.0))) <= 0).all()
