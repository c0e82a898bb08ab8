"""One process checks the checkpoints, and all continue from the one that it found in order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import train.agreed_checkpoint
from train.agreed_checkpoint import TOLD, agreed_checkpoint
from train.checkpoints import checkpoints, newest_checkpoint
from train.run import train as run

PROGRAM = Path(__file__).with_name("agreed_checkpoint_program.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names of three checkpoints, nothing in them."""
    for step in (2, 4, 6):
        (tmp_path / f"step-{step:08d}.ckpt").touch()
    return tmp_path


@pytest.fixture
def process(monkeypatch) -> Callable[..., Any]:
    """``process(rank, ranks, external)``: its trainer; step 6 is damaged, and who looks is noted."""

    def make(rank: int, ranks: int = 2, external: bool = True) -> Any:
        def newest(folder: Path) -> tuple[int, Path]:
            trainer.looked += 1
            return 4, folder / "step-00000004.ckpt"

        def broadcast(found: Any) -> Any:
            assert trainer.began
            trainer.sent = found
            return (4, Path("of rank 0"))

        environment = SimpleNamespace(creates_processes_externally=external)
        strategy = SimpleNamespace(cluster_environment=environment, broadcast=broadcast)
        trainer = SimpleNamespace(world_size=ranks, local_rank=rank, is_global_zero=rank == 0)
        trainer.strategy, trainer.looked, trainer.began, trainer.sent = strategy, 0, False, None
        strategy.setup_environment = lambda: setattr(trainer, "began", True)
        monkeypatch.setattr(train.agreed_checkpoint, "newest_checkpoint", newest)
        return trainer

    return make


@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_that_a_launcher_started_rank_zero_looks(rank, process, folder):
    trainer = process(rank)
    with agreed_checkpoint(trainer, folder) as found:
        assert found == (4, Path("of rank 0"))
    assert trainer.looked == (rank == 0)
    assert (trainer.sent is None) == (rank == 1)


def test_one_process_begins_no_group(process, folder):
    trainer = process(0, ranks=1)
    with agreed_checkpoint(trainer, folder) as found:
        assert found is not None and found[0] == 4
    assert trainer.looked == 1 and not trainer.began and TOLD not in os.environ


@pytest.mark.parametrize("name, step", [("step-00000004.ckpt", 4), ("", None)])
def test_processes_that_the_first_one_starts_are_told(name, step, process, folder, monkeypatch):
    first = process(0, external=False)
    with agreed_checkpoint(first, folder):
        assert os.environ[TOLD] == "step-00000004.ckpt"
    assert first.looked == 1 and not first.began and TOLD not in os.environ
    monkeypatch.setenv(TOLD, name)
    second = process(1)
    with agreed_checkpoint(second, folder) as found:
        assert (found and found[0]) == step
    assert second.looked == 0 and not second.began


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_fall_back_together(strategy, toy, pretrain_yaml, run_python):
    """A launcher's processes, the newest checkpoint damaged: one looks, both go on from the one before."""
    whole, config = toy(run="whole"), toy("max_steps=4")
    for one in (whole, config):
        run(one, "pretrain")
    names = Path(config.run_dir) / "checkpoints"
    newest = checkpoints(names)[-1][1]
    newest.write_bytes(newest.read_bytes()[:1000])
    settings = (f"run_dir={config.run_dir}", "batch_size=8", f"trainer.strategy={strategy}")
    done = run_python(PROGRAM, "pretrain", pretrain_yaml, *settings, "trainer.devices=2", timeout=800)
    assert done.returncode == 0, done.stderr
    looks = json.loads(done.stdout.splitlines()[-1])
    assert looks == {"0": ["step-00000004.ckpt", "step-00000002.ckpt"], "1": []}
    assert "continuing from step 2" in done.stdout
    found = newest_checkpoint(names)
    assert found is not None and found[0] == 6
