"""The demo's hit rates: budgets are kept, and the better variant counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fmtt
from train.demo import hit_rate
from train.demo.beside import VARIANTS, Beside
from train.demo.hit_rate import Outcome

ROOT = Path(__file__).resolve().parents[3]
PARENT = """
import time
import fmtt
from train.demo.beside import Beside

if __name__ == "__main__":
    with Beside() as beside:
        beside.start(fmtt.load("clock-teacher"), seed=0)
        print(beside._process.pid, flush=True)
        time.sleep(60)
"""


def test_every_variant_keeps_its_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = fmtt.load("clock-teacher")
    for variants in hit_rate.METHODS.values():
        for variant in variants:
            (found,) = hit_rate.outcomes(variant, teacher, teacher, runs=1, amounts=(100,))
            assert 50 <= found.passes <= 100, variant  # one base sample costs 50


def test_the_variant_that_hits_more_often_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(variant: str, *_: object, **__: object) -> list[Outcome]:
        rate = 0.75 if "tilt" in variant else 0.5
        return [Outcome(rate, -1.0, 10.0)] * len(hit_rate.BUDGETS)

    monkeypatch.setattr(hit_rate, "outcomes", found)
    teacher = fmtt.load("clock-teacher")
    result = hit_rate.compare(teacher, teacher)
    assert result["hit_rate"]["fmtt_flow_map"] == [0.75] * 5
    assert set(result["variants"]["fmtt_flow_map"]) == {"fmtt_tilt", "fmtt_search"}
    assert result["hit_rate"]["best_of_n"] == [0.5] * 5


def test_two_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_rate, "RUNS", 3)
    monkeypatch.setattr(hit_rate, "BUDGETS", (8, 20))
    flow_map, teacher = fmtt.load("clock-map"), fmtt.load("clock-teacher")
    variants = ["base", "best_of_n_few_step"]
    one = list(hit_rate.all_outcomes(variants, flow_map, teacher, seed=1, processes=1))
    two = list(hit_rate.all_outcomes(variants, flow_map, teacher, seed=1, processes=2))
    assert [row[0] for row in one] == [row[0] for row in two] == variants
    for (_, mine), (_, theirs) in zip(one, two, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.hit_rate, a.passes) == (b.hit_rate, b.passes)
            assert a.mean_reward == pytest.approx(b.mean_reward, rel=1e-4)  # last bits depend on threads


def test_what_was_found_before_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def found(variant: str, *_: object, **__: object) -> list[Outcome]:
        tried.append(variant)
        return [Outcome(0.5, -1.0, 10.0)] * len(hit_rate.BUDGETS)

    monkeypatch.setattr(hit_rate, "outcomes", found)
    teacher = fmtt.load("clock-teacher")
    known = {variant: [Outcome(0.25, -2.0, 9.0)] * len(hit_rate.BUDGETS) for variant in VARIANTS}
    result = hit_rate.compare(teacher, teacher, known=known)
    assert not set(tried) & set(VARIANTS) and len(tried) == 3
    assert list(result["hit_rate"]) == list(hit_rate.METHODS)
    assert result["hit_rate"]["fmtt_denoiser"] == [0.25] * 5
    assert result["hit_rate"]["fmtt_flow_map"] == [0.5] * 5


def test_the_process_beside_finds_what_the_map_is_not_needed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_rate, "RUNS", 2)
    monkeypatch.setattr(hit_rate, "BUDGETS", (100,))
    teacher, flow_map = fmtt.load("clock-teacher"), fmtt.load("clock-map")
    with Beside() as beside:
        assert beside.outcomes() == {}  # not started
        beside.start(teacher, seed=3)
        beside._process.join()
        found = beside.outcomes()
    assert tuple(found) == VARIANTS
    for variant, (mine,) in found.items():
        (other,) = hit_rate.outcomes(variant, flow_map, teacher, seed=3, runs=2, amounts=(100,))
        assert (mine.hit_rate, mine.passes) == (other.hit_rate, other.passes), variant
        assert mine.mean_reward == pytest.approx(other.mean_reward, rel=1e-3), variant


def test_the_process_beside_is_gone_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), Beside() as beside:
        beside.start(fmtt.load("clock-teacher"), seed=0)
        process = beside._process
        assert process.is_alive()
        raise KeyboardInterrupt
    assert not process.is_alive()


def test_a_process_beside_that_dies_leaves_the_work_to_others() -> None:
    with Beside() as beside:
        beside.start(fmtt.load("clock-teacher"), seed=0)
        beside._process.kill()
        assert beside.outcomes() == {}


def test_what_is_not_done_yet_is_left_to_others() -> None:
    with Beside() as beside:
        beside.start(fmtt.load("clock-teacher"), seed=0)
        assert beside.outcomes() == {} and not beside._process.is_alive()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_the_process_beside_does_not_outlive_the_demo(number: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": "."}
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, cwd=ROOT, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(8)  # until it is at work
        assert runs(child)
        parent.send_signal(number)
    deadline = time.monotonic() + 30
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not runs(child)


def runs(process: int) -> bool:
    """Whether it does, and is not merely waiting for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
