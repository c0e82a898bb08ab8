"""Computed sets: sample i is always the same, and samples follow the stated laws."""

from __future__ import annotations

import math

import pytest
import torch

from data.procedural import (
    BOARD_HALF_SIDE,
    MODE_RADIUS,
    MODE_STD,
    MODES,
    PROCEDURAL,
    checkerboard_batch,
    clock_batch,
    clock_latents,
    mixture_batch,
    procedural,
)
from fmtt.errors import UserError
from fmtt.rewards import clock, clock_judge


@pytest.mark.parametrize("name", list(PROCEDURAL))
def test_sample_i_is_the_same_in_every_batch(name: str):
    source = PROCEDURAL[name]
    whole = source.batch(torch.arange(100), 5)
    assert whole.x.shape == (100, *source.data_shape) and whole.x.dtype == torch.float32
    for indices in (torch.tensor([17]), torch.tensor([99, 0, 42]), torch.arange(31, 64)):
        part = source.batch(indices, 5)
        assert torch.equal(part.x, whole.x[indices])
        if whole.cond is not None:
            assert part.cond is not None
            assert torch.equal(part.cond["label"], whole.cond["label"][indices])
    assert not torch.equal(source.batch(torch.arange(100), 6).x, whole.x)


def test_clock_images_show_their_times():
    images, latents = clock_batch(torch.arange(64), 1)
    assert images.shape == (64, 3, 32, 32) and images.abs().max() <= 0.5
    reading = clock_judge.read(images)
    assert reading.readable.all()
    assert clock.time_difference(reading.time, latents.time).abs().max() <= 1


def test_times_follow_the_prior():
    n, bins = 40_000, 24
    time, shades = clock_latents(torch.arange(n), 3)
    assert time.min() >= 0 and time.max() < clock.MINUTES
    grid = torch.linspace(0, clock.MINUTES, bins * 100 + 1, dtype=torch.float64)
    mass = torch.stack(
        [
            torch.trapezoid(clock.time_density(g), g)
            for g in (grid[i * 100 : i * 100 + 101] for i in range(bins))
        ]
    )
    share = torch.histc(time, bins, 0, clock.MINUTES).double() / n
    error = (mass * (1 - mass) / n).sqrt()
    assert ((share - mass).abs() < 4 * error).all()
    near = (clock.time_difference(time, clock.parse_time("3:47")).abs() <= 10).double().mean()
    assert abs(near.item() - 0.01) < 4 * math.sqrt(0.01 / n) + 3e-4
    assert ((shades.mean(0) - 0.5).abs() < 4 / math.sqrt(12 * n)).all()
    assert (
        torch.corrcoef(torch.cat([time[:, None], shades], 1).T) - torch.eye(5)
    ).abs().max() < 4 / math.sqrt(n)


def test_the_mixture_has_its_moments():
    n = 40_000
    x, (label,) = mixture_batch(torch.arange(n), 0)
    share = torch.bincount(label, minlength=MODES) / n
    assert ((share - 1 / MODES).abs() < 4 * math.sqrt(1 / MODES / n)).all()
    angle = label * (2 * math.pi / MODES)
    noise = (x - MODE_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)) / MODE_STD
    assert (noise.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((noise.var(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_the_checkerboard_fills_its_dark_squares_evenly():
    n = 20_000
    x, (label,) = checkerboard_batch(torch.arange(n), 0)
    assert x.abs().max() <= BOARD_HALF_SIDE
    cell = ((x + BOARD_HALF_SIDE) / (BOARD_HALF_SIDE / 2)).floor().long()
    assert ((cell.sum(1) % 2) == 0).all()
    assert len(torch.unique(cell, dim=0)) == 8
    assert ((torch.bincount(label) / n - 1 / 8).abs() < 4 * math.sqrt(1 / 8 / n)).all()


def test_an_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'checkerboard'"):
        procedural("chekerboard")
