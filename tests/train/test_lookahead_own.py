"""Without a teacher, training logs how far the map is from its own diagonal's ODE."""

from __future__ import annotations

import csv
import math

import pytest

from train.callbacks import Evaluation
from train.run import train

SELF = (
    "teacher=self",
    "objective.terms={lsd: 1, flow_matching: 1}",
    "objective.name=''",
    "times.diagonal=0.5",
)


def logged(run_dir) -> dict[str, float]:
    """The last row of a run's metrics."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return {key: float(value) for key, value in list(csv.DictReader(file))[-1].items() if value}


def test_a_self_taught_run_logs_its_look_ahead_and_no_best_checkpoint_by_it(toy):
    run_dir = train(toy(*SELF), "distill")
    last = logged(run_dir)
    names = {f"lookahead_own/{n}@{t:g}" for n in ("denoiser", "map_1", "map_4") for t in Evaluation.TIMES}
    assert names <= last.keys() and all(math.isfinite(last[n]) for n in names)
    assert last["lookahead_own/map_1@0"] > 0
    # A map that stands still agrees with itself: this is no measure of quality.
    assert not any(key.startswith("lookahead/") for key in last)
    assert not (run_dir / "checkpoints" / "best.json").exists()


def test_a_diagonal_that_cannot_be_integrated_does_not_end_training(toy, monkeypatch):
    def fails(*args, **kwargs):
        raise FloatingPointError("no step is small enough")

    monkeypatch.setattr("train.callbacks.reference", fails)
    with pytest.warns(UserWarning, match="no look-ahead error at step"):
        run_dir = train(toy(*SELF), "distill")
    assert not any(key.startswith("lookahead") for key in logged(run_dir))
