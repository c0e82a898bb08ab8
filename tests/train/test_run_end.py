"""How a run ends: by a signal, with a checkpoint; by itself, with its last step logged."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.train.test_run import assert_same, last, rows
from train.export import export_run
from train.run import train


@pytest.mark.parametrize("number, says", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_ends_the_step_and_writes_a_checkpoint(number, says, toy, stop_at, monkeypatch, capfd):
    requeued = []
    monkeypatch.setattr("train.run.requeue", lambda: requeued.append(True) or "requeued")
    whole, config = toy(run="whole"), toy("checkpoint.every_steps=100")
    train(whole, "pretrain")
    stop_at(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        train(config, "pretrain")
    assert caught.value.code == 128 + number and last(config)["global_step"] == 4
    printed = capfd.readouterr()
    person = number == signal.SIGINT
    line = f"stopped by {says} after step 4; {'the same command continues' if person else 'requeued'}"
    assert printed.out.splitlines()[-1] == f"{config.run_dir}: {line}"
    assert ("Ctrl-C again stops at once" in printed.err) == person and requeued == [True] * (not person)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, "pretrain")
    assert_same(whole, config)


def test_ctrl_c_before_the_first_step_is_answered_at_once(toy, monkeypatch):
    def interrupt(*args, **kwargs) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("train.module.FlowMapModule.configure_optimizers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(toy(), "pretrain")


def test_the_last_step_is_logged(toy):
    config = toy("max_steps=3", "log.every_steps=50", "evaluate.every_steps=50")
    run_dir = train(config, "pretrain")
    (row,) = (row for row in rows(config) if row["loss"])
    assert row["step"] == "2" and float(row["grad_norm"]) > 0 and float(row["throughput/samples_per_s"]) > 0
    assert json.loads((run_dir / "summary.json").read_text())["metrics"]["loss"] > 0
    export = export_run(run_dir, run_dir / "export")
    assert "| loss |" in (export / "README.md").read_text()
    assert json.loads((export / "config.json").read_text())["metrics"]["loss"] > 0
