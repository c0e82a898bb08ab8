"""The clock table: a run is distilled for its time, measured, and not repeated."""

from __future__ import annotations

import json

import pytest
import torch

import fmtt
from fmtt.evaluation.ascent import reward_errors
from fmtt.evaluation.lookahead import lookahead_errors
from tests.benchmarks import clock_objectives
from tests.benchmarks.clock_judge import MAP_STEPS, Judge, difference, rmse_ratio
from train.build import build_module
from train.config import load_config

SMALL = ["--seconds", "0.2", "--trajectories", "6", "--gradients", "2", "--set", "batch_size=2"]


def test_every_run_has_a_configuration(tmp_path):
    for part in clock_objectives.RUNS.values():
        for overrides in part.values():
            config = load_config(clock_objectives.CONFIG, [f"run_dir={tmp_path}", *overrides])
            assert overrides[0] == f"objective.name={config.objective.name}"


def test_a_clip_of_zero_is_none(tmp_path):
    points = [
        "data.source=mixture",
        "teacher=oracle:mixture",
        "student.network=mlp",
        "student.args={width: 8}",
    ]
    times = clock_objectives.times("uniform", 0.1)
    overrides = [f"run_dir={tmp_path}", *points, *times, "objective.name=lmd", "optimizer.clip=0"]
    config = load_config(clock_objectives.CONFIG, overrides)
    fresh = build_module(config, "distill", (2,)).student.state_dict()
    student, steps = clock_objectives.distil(config, 3.0)
    assert steps > 0 and not torch.equal(
        student.state_dict()["network.embed.weight"], fresh["network.embed.weight"]
    )


@pytest.mark.slow
def test_a_run_is_measured_and_kept(tmp_path, capsys):
    command = ["--only", "lmd", "--out", str(tmp_path), *SMALL]
    assert clock_objectives.main(command) == 0
    file = tmp_path / "lmd" / "measured.json"
    first = json.loads(file.read_text())
    assert first["training_steps"] >= 1
    for values in (*first["ratio"].values(), *first["cosine"].values()):
        assert len(values) == len(clock_objectives.TIMES)
    assert set(first["mmd"]) == {"1", "4"}
    # The student starts as its teacher: one step of it is the denoiser.
    assert 0.8 < first["ratio"]["map_1"][0] < 1.2
    written = file.stat().st_mtime_ns
    assert clock_objectives.main(command) == 0 and file.stat().st_mtime_ns == written
    assert "lmd" in capsys.readouterr().out


@pytest.mark.slow
def test_the_judge_is_read_again_and_agrees_with_the_evaluation(tmp_path):
    teacher, kept = fmtt.load("clock-teacher"), tmp_path / "judge.safetensors"
    first = Judge(teacher, 4, 2, kept)
    again = Judge(teacher, 4, 2, kept)
    assert torch.equal(first.exact, again.exact) and first.floor == again.floor
    measured = first.measure(teacher)
    options = {"velocity": teacher.velocity, "map_steps": MAP_STEPS}
    rmse = lookahead_errors(teacher, first.trajectory, **options).rmse
    slopes = reward_errors(teacher, first.trajectory.first(2), first.reward, gradient_samples=2, **options)
    for name in ("map_1", "map_4"):
        ratio = [a / b for a, b in zip(rmse[name], rmse["denoiser"], strict=True)]
        assert measured["ratio"][name] == pytest.approx(ratio, rel=1e-4)
        assert measured["cosine"][name] == pytest.approx(slopes.cosine[name], abs=1e-4)


def test_paired_errors_follow_their_definition():
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.rand(20000, generator=generator).double() + 1, torch.rand(20000, generator=generator)
    b = a + 0.1 * noise
    ratio, change = rmse_ratio(a.tolist(), b.tolist()), difference(a.tolist(), b.tolist())
    parts = [
        rmse_ratio(x.tolist(), y.tolist()).value for x, y in zip(a.split(200), b.split(200), strict=True)
    ]
    spread = float(torch.tensor(parts).std()) / len(parts) ** 0.5
    assert ratio.standard_error == pytest.approx(spread, rel=0.3)
    assert change.value == pytest.approx(-0.05, abs=4 * change.standard_error)
    # Unpaired samples would give ten times this.
    assert change.standard_error < 0.001


def test_an_unknown_run_is_named(tmp_path, capsys):
    assert clock_objectives.main(["--only", "lmdd", "--out", str(tmp_path)]) == 2
    assert "--only: 'lmdd' is not one of" in capsys.readouterr().err
