"""A grid becomes overrides that a configuration takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.config import load_config
from train.sweep import main, points

GRID = """\
optimizer.lr: [1.0e-3, 3.0e-4]
ema.half_lives: [[2], [2, 5]]
student.init: [scratch]
log.wandb: [false]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def test_all_combinations_the_last_key_fastest(grid, pretrain_yaml):
    every = points(grid)
    configs = [load_config(pretrain_yaml, ["run_dir=x", *point]) for point in every]
    found = [(c.optimizer.lr, c.ema.half_lives, c.student.init, c.log.wandb) for c in configs]
    assert found == [
        (lr, half_lives, "scratch", False) for lr in (1e-3, 3e-4) for half_lives in ([2.0], [2.0, 5.0])
    ]


def test_a_point_is_a_line_for_each_key(grid, capsys):
    assert main([str(grid), "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("optimizer.lr=0.001", "ema.half_lives=[2, 5]", "student.init=scratch", "log.wandb=false")
    ]


@pytest.mark.parametrize(
    ("text", "index", "says"),
    [
        (GRID, "4", "has 4 points, not a number 4: submit with --array=0-3"),
        (GRID, "first", "usage"),
        ("optimizer.lr: 1.0e-3", "0", "optimizer.lr must be a list of values"),
        ("optimizer.lr: []", "0", "optimizer.lr must be a list of values"),
        ("[1, 2]", "0", "must map keys to lists"),
        ("a: [", "0", "cannot be read"),
        (None, "0", "cannot be read"),
    ],
)
def test_mistakes(text, index, says, tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    if text is not None:
        path.write_text(text)
    assert main([str(path), index]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and error.startswith("error: ")
