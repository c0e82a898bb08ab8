"""SIGKILL at random moments: the same command ends with the weights of an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("kill_program.py")


@pytest.fixture
def kills(run_python, pretrain_yaml, tmp_path):
    """``kills(seed, count, moment)``: what kill_program.py found, on a run of 40 steps."""
    text = pretrain_yaml.read_text().replace("max_steps: 6", "max_steps: 40")
    pretrain_yaml.write_text(text.replace("num_samples: 4", "num_samples: 0"))

    def run(seed: int, count: int, *moment: str) -> list[dict[str, Any]]:
        program = (PROGRAM, pretrain_yaml, tmp_path / "runs", str(seed), str(count), *moment)
        done = run_python(*program, timeout=550)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_at_three_random_moments(kills):
    found = kills(0, 3)
    assert [run["differ"] for run in found] == [[]] * 3 and any(run["killed"] for run in found)


@pytest.mark.slow
def test_at_twenty_random_moments(kills):
    found = kills(1, 20)
    assert [run["differ"] for run in found] == [[]] * 20
    killed = [run["step"] for run in found if run["killed"]]
    assert len(killed) >= 15 and len(set(killed)) > 3  # spread over the run


@pytest.mark.slow
def test_of_a_run_with_a_discriminator(kills, pretrain_yaml, teacher):
    settings = "adversarial: {weight: 0.5, start_step: 5, warmup: 10, args: {width: 8}}\n"
    text = pretrain_yaml.read_text().replace("flow_matching", "lmd")
    pretrain_yaml.write_text(f"{text}teacher: {teacher}\n{settings}")
    found = kills(2, 5)
    assert [run["differ"] for run in found] == [[]] * 5
    assert sum(run["killed"] for run in found) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, goes_on_from", [("half-written", 2), ("before the rename", 2), ("after the rename", 4)]
)
def test_while_a_checkpoint_is_written(moment, goes_on_from, kills):
    (run,) = kills(0, 1, moment)
    assert run == {"step": goes_on_from, "killed": True, "differ": []}
