"""The judge reads clean clocks to the minute and refuses what is not a clock."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fmtt.rewards import clock, clock_judge


@pytest.fixture(scope="module")
def day() -> clock.Clock:
    """Every minute, with random shades."""
    generator = torch.Generator().manual_seed(0)
    shades = torch.rand(clock.MINUTES, clock.NUM_SHADES, generator=generator)
    return clock.Clock(torch.arange(clock.MINUTES).float(), shades)


@pytest.fixture(scope="module")
def images(day: clock.Clock) -> torch.Tensor:
    return clock.render(day)


def test_every_minute_is_read(day: clock.Clock, images: torch.Tensor):
    reading = clock_judge.read(images)
    assert clock.time_difference(reading.time, day.time).abs().max() <= 1
    assert reading.readable.all()
    assert reading.residual.max() < 0.005


def test_times_between_minutes_and_slight_noise_are_read(day: clock.Clock):
    time = day.time + 0.5
    noise = (
        0.02 * clock.SCALE * torch.randn(clock.MINUTES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    )
    reading = clock_judge.read(clock.render(clock.Clock(time, day.shades)) + noise)
    assert clock.time_difference(reading.time, time).abs().max() <= 2
    assert reading.readable.all()


def blur(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(images, 5, stride=1, padding=2)


@pytest.mark.parametrize(
    "spoil",
    [
        blur,
        lambda x: x.mean(0, keepdim=True),
        lambda x: x + 0.12 * clock.SCALE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
        lambda x: x.flip(1),  # a blue hour hand
        torch.zeros_like,
        lambda x: clock.SCALE * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5),
    ],
    ids=["blurred", "mean", "noisy", "swapped", "blank", "noise"],
)
def test_what_is_not_one_clock_is_unreadable(images: torch.Tensor, spoil):
    assert clock_judge.read(spoil(images)[::5]).readable.float().mean() <= 0.02


@pytest.mark.parametrize("apart", [5, 15, 40, 60, 180, 240])
def test_two_clocks_laid_over_each_other_are_unreadable(day: clock.Clock, images: torch.Tensor, apart: int):
    other = clock.render(clock.Clock(day.time + apart, day.shades))
    assert not clock_judge.read((images + other)[::3] / 2).readable.any()


def test_an_image_that_is_not_finite_is_unreadable_and_spoils_no_other(images: torch.Tensor):
    batch = images[:4].clone()
    batch[1] = float("nan")
    batch[2, 0, 3, 3] = float("inf")
    reading = clock_judge.read(batch)
    assert reading.readable.tolist() == [True, False, False, True]
    assert reading.time[[0, 3]].tolist() == [0, 3]


def test_chunks_and_empty_batches(images: torch.Tensor):
    whole, parts = clock_judge.read(images[:50]), clock_judge.read(images[:50], chunk=7)
    assert torch.equal(whole.time, parts.time) and torch.equal(whole.readable, parts.readable)
    assert clock_judge.read(images[:0]).time.shape == (0,)


def test_hits_are_readable_clocks_within_the_tolerance(images: torch.Tensor):
    hits = clock_judge.hits(images, "3:47", 10)
    assert hits.nonzero().flatten().tolist() == list(range(217, 238))
    midnight = clock_judge.hits(images, "12:00", 2).nonzero().flatten().tolist()
    assert midnight == [0, 1, 2, 718, 719]
    assert not clock_judge.hits(blur(images[220:230]), "3:47", 10).any()
