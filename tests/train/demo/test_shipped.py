"""What the shipped clock models promise, measured. Slow: `make test-slow`."""

from __future__ import annotations

import pytest
import torch

import fmtt
from fmtt.evaluation import exactness
from train.demo.exact import check_exactness
from train.demo.measure import map_quality, velocity_quality

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_the_teachers_samples_are_clocks_that_follow_the_prior() -> None:
    measured = velocity_quality(fmtt.load("clock-teacher"))
    assert measured["readable"] >= 0.95
    assert measured["total_variation_of_times"] <= 0.1


def test_the_shipped_map_sees_ahead() -> None:
    measured = map_quality(fmtt.load("clock-map"), fmtt.load("clock-teacher"))
    denoiser, map_1, map_4 = (torch.tensor(measured["rmse"][k]) for k in ("denoiser", "map_1", "map_4"))
    assert (map_1[:4] <= 0.45 * denoiser[:4]).all()
    assert (map_1[:6] <= 0.6 * denoiser[:6]).all()
    assert (map_4[:4] <= 0.25 * denoiser[:4]).all()
    assert measured["teacher_nfe_matched"]["map_1"] >= 6


def test_the_tilted_clocks_law_is_the_base_law_times_the_exponential_reward() -> None:
    teacher, flow_map = fmtt.load("clock-teacher"), fmtt.load("clock-map")
    checked = check_exactness(
        flow_map, teacher, num_particles=128, num_populations=16, base_samples=20_000, seed=0
    )
    assert checked["kl_tilted_to_prior"] >= 1
    assert checked["kl_to_base_law"] <= checked["noise_floor"] + 0.05


def test_a_tilt_towards_another_time_is_told_apart() -> None:
    """The check above has power: particles of a weaker tilt are far from the law."""
    teacher, flow_map = fmtt.load("clock-teacher"), fmtt.load("clock-map")
    weak, right = (
        check_exactness(
            flow_map, teacher, num_particles=64, num_populations=4, base_samples=2000, sharpness=sharpness
        )["histograms"]
        for sharpness in (1.5, 3.0)
    )
    p, q = torch.tensor(weak["FMTT"]), torch.tensor(right["importance-weighted base"])
    assert exactness.kl(p, q, smoothing=0.002) > 0.15
