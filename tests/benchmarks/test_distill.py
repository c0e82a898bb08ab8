"""The costs of a training step: passes are counted right, and the table holds every objective."""

from __future__ import annotations

import json

import pytest
import torch

from fmtt.flow.calculus import average_velocity
from tests.benchmarks import distill
from tests.benchmarks.distill import count_passes, problem
from train.losses import OBJECTIVES
from train.losses.base import LossOutput, mean_square

PASSES = {
    "flow_matching": 3,
    "diagonal": 4,
    "lsd": 7,  # teacher 1, student and its tangent 2, backward 2, backward of the tangent 2
    "lmd": 5,  # teacher 1, student and its tangent 2, backward 2
    "esd": 9,  # as lsd, and one more derivative without a gradient
    "emd": 5,
    "mean_flow": 4,
    "psd_m": 5,  # three forwards, of which one has a backward
    "psd_u": 5,
    "consistency": 5,
    "tvm": 10,  # lsd and flow matching
}


@pytest.mark.parametrize("name", PASSES)
def test_the_floor_counts_network_passes(name):
    _, inputs = problem(4, 16, 1, 0.0)
    floor = count_passes(OBJECTIVES[name], inputs)
    assert floor.passes == PASSES[name]
    assert floor.through == (name in ("lsd", "esd", "tvm"))


def test_a_sum_pays_for_each_sample_once():
    _, inputs = problem(4, 16, 1, 0.5)
    assert count_passes(OBJECTIVES["psd"], inputs).passes == (PASSES["psd_u"] + PASSES["diagonal"]) / 2


def test_a_wasted_pass_is_seen():
    def wasteful(student, teacher, path, times, cond=None):
        with torch.no_grad():
            average_velocity(student, path.x_s, times.s, times.t, cond, derivative=True)
        return OBJECTIVES["flow_matching"](student, teacher, path, times, cond)

    _, inputs = problem(4, 16, 1, 0.0)
    assert count_passes(wasteful, inputs).passes == PASSES["flow_matching"] + 2


def test_peak_memory_is_that_of_the_largest_moment():
    def step() -> None:
        for _ in range(3):
            a = torch.ones(2**18)  # 1 MiB
            b = a + 1
            del a, b

    peak = distill.peak_bytes(step, torch.device("cpu"))
    assert 2 * 2**20 <= peak < 2.5 * 2**20


def test_a_run_writes_its_table(tmp_path, monkeypatch, capsys):
    small = ["--objectives", "lmd", "psd", "--batch", "2", "--dim", "16", "--depth", "1"]
    monkeypatch.setattr("sys.argv", ["distill", "--out", str(tmp_path), "--no-compile", *small])
    assert distill.main() in (0, 1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["objectives"]) == ["flow_matching", "lmd", "psd"]
    lmd = summary["objectives"]["lmd"]
    assert lmd["floor"] == pytest.approx(5 / 3) and lmd["eager"]["ratio"] > 1
    assert "psd" in capsys.readouterr().out


def test_an_unknown_objective_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["distill", "--objectives", "lmdd", "--out", str(tmp_path)])
    assert distill.main() == 2
    assert "'lmdd' is not one of" in capsys.readouterr().err


def test_the_loss_of_a_wrapper_counts_its_gradient():
    """An objective whose gradient does go through a tangent is told from one whose does not."""

    def through(student, teacher, path, times, cond=None):
        _, d_u = average_velocity(student, path.x_s, times.s, times.t, cond, derivative=True)
        return LossOutput(mean_square(d_u), {})

    _, inputs = problem(4, 16, 1, 0.0)
    assert count_passes(through, inputs) == (6.0, True)
