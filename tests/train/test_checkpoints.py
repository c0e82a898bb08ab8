"""Damage is found, the newest and the best stay, and a disk without room costs a checkpoint, not the run."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from fmtt.errors import UserError
from train.best import best_column
from train.callbacks import Evaluation
from train.checkpoints import WholeCheckpoints, best_checkpoint, check, checkpoints, read_checkpoint
from train.config import Config
from train.module import FlowMapModule
from train.run import train


def folder(config: Config) -> Path:
    return Path(config.run_dir) / "checkpoints"


def steps(config: Config) -> list[int]:
    return [step for step, _ in checkpoints(folder(config))]


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of random tensors."""
    weights = {f"layer{i}": torch.randn(40, 40) for i in range(4)}
    path = tmp_path / "checkpoints/step-00000002.ckpt"
    WholeCheckpoints().save_checkpoint({"state_dict": weights, "ema": {}, "export": {}}, path)
    return path


def test_every_flipped_bit_of_a_weight_is_found(saved):
    intact, rng = saved.read_bytes(), random.Random(0)
    before, found = torch.load(saved, weights_only=True), 0
    for _ in range(100):
        place = rng.randrange(len(intact))
        flipped = bytearray(intact)
        flipped[place] ^= 1 << rng.randrange(8)
        saved.write_bytes(flipped)
        try:
            content = read_checkpoint(saved)
        except Exception:
            found += 1
        else:  # padding and file attributes, which nobody reads
            assert content.keys() == before.keys()
            assert all(torch.equal(v, before["state_dict"][k]) for k, v in content["state_dict"].items())
    assert found > 80


def test_torch_alone_does_not_find_it(saved):
    """Why there is a check of our own."""
    content = bytearray(saved.read_bytes())
    weight = torch.load(saved, weights_only=True)["state_dict"]["layer1"].numpy().tobytes()
    content[content.index(weight) + 100] ^= 1
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)
    with pytest.raises(ValueError, match="checksum of .* is wrong"):
        check(saved)


def test_a_run_falls_back_from_a_flipped_bit(toy):
    whole, config = toy(run="whole"), toy()
    train(whole, "pretrain")
    train(config, "pretrain")
    newest = checkpoints(folder(config))[-1][1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="passing over the damaged checkpoint .*step-00000006.*checksum"):
        train(config, "pretrain")
    one, other = (read_checkpoint(checkpoints(folder(c))[-1][1]) for c in (whole, config))
    assert all(torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())


def test_the_best_checkpoint_stays(toy, monkeypatch):
    values = {2: 3.0, 4: 1.0, 6: float("nan"), 8: 2.0, 10: 1.5}

    def evaluate(self, trainer, module, step):
        for logger in trainer.loggers:
            logger.log_metrics({"error": values[step]}, step)

    monkeypatch.setattr(Evaluation, "evaluate", evaluate)
    settings = ("checkpoint.keep=1", "checkpoint.best=error", "evaluate.every_steps=2")
    train(toy("max_steps=6", *settings), "pretrain")
    assert steps(toy()) == [4, 6]
    config = toy("max_steps=10", *settings)
    train(config, "pretrain")
    assert steps(config) == [4, 10]
    said = json.loads((folder(config) / "best.json").read_text())
    assert said == {"step": 4, "metric": "error", "value": 1.0}
    best = best_checkpoint(folder(config))
    assert best is not None and best.step == 4
    (folder(config) / "step-00000004.ckpt").unlink()
    assert best_checkpoint(folder(config)) is None


def test_look_ahead_errors_are_measured_where_they_choose(toy):
    """At checkpoints that no evaluation falls on."""
    config = toy("evaluate.every_steps=100", "max_steps=5", distill="lmd")
    train(config, "distill")
    with open(Path(config.run_dir) / "metrics.csv", newline="") as file:
        measured = {
            int(row["step"]): float(row["lookahead/map_1@0"])
            for row in csv.DictReader(file)
            if row["lookahead/map_1@0"]
        }
    assert list(measured) == [2, 4, 5]
    best = best_checkpoint(folder(config))
    assert best is not None and (best.metric, best.value) == ("lookahead/map_1@0", min(measured.values()))
    assert measured[best.step] == best.value


def test_a_column_of_training_steps_chooses_too(toy):
    config = toy("checkpoint.best=loss", "max_steps=4")
    train(config, "pretrain")
    with open(Path(config.run_dir) / "metrics.csv", newline="") as file:
        losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}
    best = best_checkpoint(folder(config))
    assert best is not None and best.value == min(losses[1], losses[3]) == losses[best.step - 1]


def test_a_column_that_is_never_measured_is_named_once(toy):
    with pytest.warns(UserWarning, match="checkpoint.best") as caught:
        train(toy("checkpoint.best=grad_nrom"), "pretrain")
    (said,) = [str(w.message) for w in caught if "checkpoint.best" in str(w.message)]
    assert "no column 'grad_nrom' by step 2; did you mean 'grad_norm'?" in said and "\n" not in said


@pytest.mark.parametrize(
    "stage, settings, column",
    [
        ("pretrain", [], ""),
        ("distill", ["teacher=oracle:mixture"], "lookahead/map_1@0"),
        ("distill", ["teacher=oracle:mixture", "evaluate.num_samples=0"], ""),
        ("distill", ["teacher=self"], ""),
        ("distill", ["teacher=self", "checkpoint.best=lookahead_own/map_4@0.2"], "lookahead_own/map_4@0.2"),
        ("pretrain", ["checkpoint.best=loss"], "loss"),
        ("pretrain", ["checkpoint.best=''"], ""),
    ],
)
def test_what_tells_the_best_checkpoint(stage, settings, column, toy):
    assert best_column(toy(*settings), stage) == column


@pytest.mark.parametrize(
    "stage, settings, says",
    [
        ("pretrain", ["checkpoint.best=lookahead/map_1@0"], "since pretrain has no map: set it to auto"),
        (
            "distill",
            ["teacher=self", "checkpoint.best=lookahead/map_1@0"],
            "'lookahead/map_1@0' is not one of lookahead_own/map_1@0, ",
        ),
        (
            "distill",
            ["teacher=oracle:mixture", "checkpoint.best=lookahead/map1@0"],
            "did you mean 'lookahead/map_1@0'?",
        ),
        (
            "distill",
            ["teacher=oracle:mixture", "evaluate.num_samples=0", "checkpoint.best=lookahead/map_1@0"],
            "since evaluate.num_samples is 0",
        ),
    ],
)
def test_an_error_that_the_run_does_not_measure_is_refused(stage, settings, says, toy):
    with pytest.raises(UserError) as caught:
        best_column(toy(*settings), stage)
    said = str(caught.value)
    assert said.startswith("checkpoint.best: ") and says in said and "\n" not in said


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_request_ends_the_step_and_saves(number, toy, monkeypatch, capsys):
    whole, config = toy(run="whole"), toy("checkpoint.every_steps=100", "trainer.accumulate=2")
    train(toy("trainer.accumulate=2", run="whole"), "pretrain")
    original, passes = FlowMapModule.training_step, []

    def training_step(self, batch, batch_idx):
        passes.append(self.global_step)
        if len(passes) == 7:  # the first of the two passes of step 3
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FlowMapModule, "training_step", training_step)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        train(config, "pretrain")
    assert caught.value.code == 128 + number and signal.getsignal(number) == before
    assert passes == [0, 0, 1, 1, 2, 2, 3, 3] and steps(config) == [4]
    said = f"stopped by {number.name} after step 4; the same command continues"
    assert said in capsys.readouterr().out
    train(config, "pretrain")
    one, other = (read_checkpoint(checkpoints(folder(c))[-1][1]) for c in (whole, config))
    assert all(torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())


def test_processes_that_read_different_checkpoints_do_not_go_on(toy, monkeypatch):
    def broadcast(self, content, src=0):
        return content + 2 if isinstance(content, int) else content  # as rank 0 had read step 2

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    with pytest.raises(RuntimeError, match="disagree on the newest checkpoint.*this one read step 0"):
        train(toy(), "pretrain")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs needs root and the right to mount")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(toy, small_disk, monkeypatch):
    """What does not fit is reported, the old checkpoint stays, and the next is written once there is room."""
    config, filler = toy(run="small/run"), small_disk / "filler"
    evaluate, seen = Evaluation.on_train_batch_end, []

    def fill_and_make_room(self, trainer, *arguments):
        seen.append((trainer.global_step, steps(config)))
        if trainer.global_step == 3:
            with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(b"0" * 512)
        if trainer.global_step == 5:
            filler.unlink()
        return evaluate(self, trainer, *arguments)

    monkeypatch.setattr(Evaluation, "on_train_batch_end", fill_and_make_room)
    with pytest.warns(UserWarning, match="going on without the checkpoint .*step-00000004"):
        train(config, "pretrain")
    assert seen == [(1, []), (2, [2]), (3, [2]), (4, [2]), (5, [2]), (6, [2, 6])]
    for _, path in checkpoints(folder(config)):
        check(path)
    assert not list(small_disk.rglob("*.tmp"))
