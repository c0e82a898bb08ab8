"""The checkerboard's KL estimator has the values known in closed form; the benchmark trains and resumes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from data.procedural import BOARD_CELLS, BOARD_HALF_SIDE
from tests.benchmarks import checkerboard
from tests.benchmarks.checkerboard import PER_SIDE, PUBLISHED, STEPS, data, kl, measure

CELLS = BOARD_CELLS**2 // 2 * PER_SIDE**2


def test_kl_of_perfect_samples_is_the_estimators_bias():
    """It is chi-square / (2 N) with CELLS - 1 degrees of freedom, to first order."""
    n = 40_000
    value, outside = kl(data(n, seed=5))
    expected, deviation = (CELLS - 1) / (2 * n), math.sqrt(2 * (CELLS - 1)) / (2 * n)
    assert outside == 0 and abs(value - expected) < 4 * deviation


def test_kl_of_the_whole_board_is_log_two(generator):
    n = 400_000
    x = (2 * torch.rand(n, 2, generator=generator) - 1) * BOARD_HALF_SIDE
    value, outside = kl(x)
    bias, deviation = (CELLS - 1) / n, math.sqrt(2 * (CELLS - 1)) / n + 1 / math.sqrt(n)
    assert abs(value - math.log(2) - bias) < 4 * deviation
    assert abs(outside - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_kl_sees_blurred_edges_lost_squares_and_samples_elsewhere(generator):
    n = 40_000
    x = data(n, seed=5)
    noise = torch.randn(n, 2, generator=generator)
    perfect = kl(x)[0]
    blurred = [kl(x + width * noise)[0] for width in (0.02, 0.05, 0.1)]
    assert perfect + 0.005 < blurred[0] < blurred[1] - 0.02 < blurred[2] - 0.04
    lost = x[~((x[:, 0] < -0.9) & (x[:, 1] < -0.9))]  # one of eight squares
    assert kl(lost)[0] > 0.3
    leaked = torch.where(torch.rand(n, 1, generator=generator) < 0.2, torch.full_like(x, 9.0), x)
    assert kl(leaked)[0] == pytest.approx(perfect - math.log(0.8), abs=0.02)


def test_distances_are_near_zero_for_fresh_data_alone():
    truth, fresh = data(4000, seed=1), data(4000, seed=2)
    found, shifted = measure(fresh, truth), measure(fresh + 0.1, truth)
    assert found.sw2 < 0.06 and abs(found.mmd) < 1e-3
    assert shifted.sw2 > 0.12 and shifted.mmd > 1.5e-3 and shifted.kl > found.kl + 0.05


def test_the_table_sets_the_published_row_beside_ours():
    result = {"map": {str(k): {"kl": 0.01 * k, "outside": 0.0, "sw2": 0.1, "mmd": 0.001} for k in STEPS}}
    text = checkerboard.table({"lsd": result, "lmd": result}, checkerboard.Measured(0.004, 0, 0.01, 0))
    assert text.count("published") == 1 and f"{PUBLISHED['lsd'][0]:.3f}" in text
    assert checkerboard.best({"lmd": result}) == ("lmd", False)


@pytest.mark.slow
@pytest.mark.parametrize("name", checkerboard.OBJECTIVES)
def test_a_small_budget_learns_and_continues(name, tmp_path, capsys):
    """A tenth of the steps on half the samples brings 16-step samples on their way; then a file is read."""
    small = ["max_steps=600", "batch_size=512", "ema.half_lives=[30]"]
    command = ["--objectives", name, "--samples", "8192", "--out", str(tmp_path), "--set", *small]
    assert checkerboard.main(command) in (0, 1)
    found = tmp_path / name / "measured.json"
    first = found.stat().st_mtime_ns
    assert checkerboard.main(command) in (0, 1) and found.stat().st_mtime_ns == first
    assert "already trained for 600 steps" in capsys.readouterr().out
    noise = kl(torch.randn(8192, 2, generator=torch.Generator().manual_seed(0)))[0]
    after = {int(steps): values["kl"] for steps, values in json.loads(found.read_text())["map"].items()}
    assert after[16] < 0.6 * noise and after[1] < noise
