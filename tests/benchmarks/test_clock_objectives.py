"""The clock table: a run is distilled for its time, measured, and not repeated."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import clock_objectives
from train.config import load_config

SMALL = ["--seconds", "0.2", "--trajectories", "6", "--gradients", "2", "--set", "batch_size=2"]


def test_every_run_has_a_configuration(tmp_path):
    for part in clock_objectives.RUNS.values():
        for overrides in part.values():
            config = load_config(clock_objectives.CONFIG, [f"run_dir={tmp_path}", *overrides])
            assert overrides[0] == f"objective.name={config.objective.name}"


@pytest.mark.slow
def test_a_run_is_measured_and_kept(tmp_path, capsys):
    command = ["--only", "lmd", "--out", str(tmp_path), *SMALL]
    assert clock_objectives.main(command) == 0
    file = tmp_path / "lmd" / "measured.json"
    first = json.loads(file.read_text())
    assert first["training_steps"] >= 1
    for values in (*first["ratio"].values(), *first["cosine"].values()):
        assert len(values) == len(clock_objectives.TIMES)
    # The student starts as its teacher: one step of it is the denoiser.
    assert 0.8 < first["ratio"]["map_1"][0] < 1.2
    written = file.stat().st_mtime_ns
    assert clock_objectives.main(command) == 0 and file.stat().st_mtime_ns == written
    assert "lmd" in capsys.readouterr().out


def test_an_unknown_run_is_named(tmp_path, capsys):
    assert clock_objectives.main(["--only", "lmdd", "--out", str(tmp_path)]) == 2
    assert "--only: 'lmdd' is not one of" in capsys.readouterr().err
