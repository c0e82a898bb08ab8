"""What goes wrong while training: a batch that is not finite, a process that dies or stalls."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from train.checkpoints import check, checkpoints, read_checkpoint
from train.config import Config
from train.module import FlowMapModule
from train.run import train

FAULT = """\
import os, pathlib, signal, sys, time
from train.module import FlowMapModule
from train.__main__ import main

where, number = pathlib.Path(sys.argv[1]), getattr(signal, sys.argv[2])
original = FlowMapModule.training_step


def step(self, batch, batch_idx):
    if self.global_step == 3 and self.global_rank == 1 and not where.exists():
        where.write_text(f"{os.getpid()} {time.time()}")
        os.kill(os.getpid(), number)
    return original(self, batch, batch_idx)


FlowMapModule.training_step = step
sys.exit(main(sys.argv[3:]))
"""
TIMEOUT = 100.0
"""Seconds; the processes also wait this long for each other to start."""


def steps(config: Config) -> list[int]:
    return [step for step, _ in checkpoints(Path(config.run_dir) / "checkpoints")]


def weights(config: Config) -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoints(Path(config.run_dir) / "checkpoints")[-1][1])["state_dict"]


def test_a_batch_with_a_nan_stops_the_run_and_the_same_command_goes_on(toy, monkeypatch):
    whole, config = toy(run="whole"), toy()
    train(whole, "pretrain")
    original = FlowMapModule.training_step

    def spoilt(self, batch, batch_idx):
        if self.global_step == 3:
            x = batch.x.clone()
            x[5, 0] = float("nan")
            batch = batch._replace(x=x)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(FlowMapModule, "training_step", spoilt)
        said = (
            r"the loss is not finite at step 3 \(1 of 16 samples, first at s=0\.\d{3}, t=0\.\d{3}\); earlier"
        )
        with pytest.raises(ValueError, match=said):
            train(config, "pretrain")
    assert steps(config) == [2]
    check(Path(config.run_dir) / "checkpoints/step-00000002.ckpt")
    train(config, "pretrain")
    assert all(torch.equal(value, weights(config)[name]) for name, value in weights(whole).items())


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_is_gone_ends_the_run_in_time(number, toy, pretrain_yaml, run_python, tmp_path):
    """Dead at once, silent after trainer.timeout; the checkpoint before is kept and the command goes on."""
    (tmp_path / "program.py").write_text(FAULT)
    config, where = toy(), tmp_path / "fault"
    ranks = ("trainer.devices=2", "trainer.strategy=ddp", f"trainer.timeout={TIMEOUT:g}")
    words = ("pretrain", pretrain_yaml, f"run_dir={config.run_dir}", "evaluate.every_steps=100", *ranks)
    log = tmp_path / "log"
    try:
        # Into a file: a pipe would stay open as long as the stopped process.
        with open(log, "w") as file:
            into = {"capture_output": False, "stdout": file, "stderr": subprocess.STDOUT, "timeout": 500}
            done = run_python(tmp_path / "program.py", where, number, *words, **into)
        ended = time.time()
    finally:
        assert where.is_file(), log.read_text()
        process, when = where.read_text().split()
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)  # a stopped process does not end by itself
    said = log.read_text()
    assert done.returncode == 1, said
    cause = "Connection" if number == "SIGKILL" else f"Timed out waiting {1000 * TIMEOUT:.0f}ms"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "another process of this run died or does not answer" in lines[0], said
    assert cause in lines[0] and "Traceback" not in said, said
    limit = 60.0 if number == "SIGKILL" else TIMEOUT + 60  # a minute for a busy machine
    assert ended - float(when) < limit
    assert steps(config) == [2]
    check(Path(config.run_dir) / "checkpoints/step-00000002.ckpt")
    if number == "SIGSTOP":
        return
    again = run_python(tmp_path / "program.py", where, number, *words, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "continuing from step 2" in again.stdout and steps(config) == [4, 6]
