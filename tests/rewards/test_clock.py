"""The clock's prior, renderer and notation of times."""

from __future__ import annotations

import math

import pytest
import torch

from fmtt.errors import UserError
from fmtt.rewards import clock


def test_density_integrates_to_one_and_is_biased_toward_ten_past_ten():
    grid = torch.linspace(0, clock.MINUTES, 72001, dtype=torch.float64)
    density = clock.time_density(grid)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-9)
    assert grid[density.argmax()].item() == pytest.approx(610)
    assert density.min() > 0


def test_prior_mass_near_a_quarter_to_four_is_one_percent():
    target = clock.parse_time("3:47")
    grid = torch.linspace(target - 10, target + 10, 2001, dtype=torch.float64)
    assert torch.trapezoid(clock.time_density(grid), grid).item() == pytest.approx(0.01, abs=5e-4)


def test_quantile_inverts_the_distribution_function():
    u = torch.tensor([0.0, 1e-6, 0.2, 0.5, 0.9, 0.999999], dtype=torch.float64)
    times = clock.time_quantile(u)
    assert times[0] == 0
    assert (times < clock.MINUTES).all() and (times.diff() > 0).all()
    for share, time in zip(u.tolist(), times.tolist(), strict=True):
        grid = torch.linspace(0, time, 20001, dtype=torch.float64)
        assert torch.trapezoid(clock.time_density(grid), grid).item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("text", "minutes"), [("12:00", 0), ("3:47", 227), ("10:10", 610), ("11:59", 719)])
def test_times_round_trip(text: str, minutes: float):
    assert clock.parse_time(text) == minutes
    assert clock.format_time(minutes) == text
    assert clock.format_time(minutes + clock.MINUTES) == text


@pytest.mark.parametrize(
    "text", ["", "3", "347", "3:4", "0:10", "13:00", "3:60", "3:470", "-3:47", "3:47pm", "a:bc"]
)
def test_a_wrong_time_is_refused_by_its_text(text: str):
    with pytest.raises(UserError, match="h:mm") as caught:
        clock.parse_time(text)
    assert repr(text) in str(caught.value)


def test_time_difference_is_the_short_way_round():
    a = torch.tensor([5.0, 715.0, 360.0, 100.0])
    assert clock.time_difference(a, 715.0).tolist() == [10.0, 0.0, -355.0, 105.0]


def test_layers_share_out_every_pixel():
    weights = clock.layer_weights(torch.arange(0, clock.MINUTES, 7).float())
    assert weights.shape[1:] == (6, clock.SIZE, clock.SIZE)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))


def test_a_clock_looks_as_its_colours_say():
    image = clock.render(clock.Clock(torch.tensor([180.0]), torch.zeros(1, 4)))[0]  # three o'clock
    assert image.shape == clock.DATA_SHAPE
    low, high = clock.VALUE_RANGE
    assert low <= image.min() and image.max() <= high
    image = clock.unscale(image)
    middle = clock.SIZE // 2
    torch.testing.assert_close(image[:, 0, 0], torch.tensor(clock.BACKGROUND))
    hour_pixel, minute_pixel = image[:, middle, middle + 5], image[:, middle - 8, middle]
    assert hour_pixel[0] - hour_pixel[2] > 0.5  # red to the right
    assert minute_pixel[2] - minute_pixel[0] > 0.2  # blue at the top, a hand about two pixels wide
    assert torch.allclose(clock.to_rgb(clock.SCALE * (image[None] - 0.5))[0], image)


def test_rendering_is_periodic_and_moves_the_hour_hand_with_the_minutes():
    shades = torch.full((2, 4), 0.5)
    wrapped = clock.render(clock.Clock(torch.tensor([227.0, 227.0 + clock.MINUTES]), shades))
    torch.testing.assert_close(wrapped[0], wrapped[1], atol=1e-4, rtol=0)
    hour, minute = clock.hand_angles(torch.tensor([90.0]))
    assert hour.item() == pytest.approx(math.pi / 4)
    assert minute.item() == pytest.approx(3 * math.pi)


def test_edges_are_antialiased_so_that_a_minute_moves_the_image_a_little():
    shades = torch.full((721, 4), 0.5)
    images = clock.render(clock.Clock(torch.arange(721).float(), shades))
    step = (images[1:] - images[:-1]).square().mean((1, 2, 3)).sqrt()
    assert step.min() > 1e-3 and step.max() < 0.07
