"""The command line: exit status and one line for every kind of mistake, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.__main__ import main
from train.checkpoints import newest_checkpoint

ROOT = Path(__file__).resolve().parents[2]

MISTAKES = [
    ("", "required: command"),
    ("trian CONFIG", "invalid choice: 'trian'"),
    ("pretrain", "required: config"),
    ("pretrain nowhere.yaml", "config nowhere.yaml does not exist"),
    ("pretrain CONFIG --fast", "unrecognized arguments: --fast"),
    ("pretrain CONFIG", "has no run_dir"),
    ("pretrain CONFIG RUN max_stpes=3", "did you mean 'max_steps'"),
    ("pretrain CONFIG RUN max_steps=few", "max_steps"),
    ("pretrain CONFIG RUN max_steps", "is not of the form key=value"),
    ("pretrain CONFIG RUN objective.name=flow", "'flow' is not one of flow_matching"),
    ("pretrain CONFIG RUN data.source=clok", "data source 'clok'"),
    ("pretrain CONFIG RUN student.network=dit", "student.args"),
    ("pretrain CONFIG RUN trainer.precision=float8", "trainer.precision: 'float8' is not one of"),
    (
        "pretrain CONFIG RUN trainer.precision=32",
        "error: trainer.precision: '32' is not one of auto",
    ),
    ("pretrain CONFIG RUN trainer.strategy=dpp", "trainer: "),
    ("pretrain CONFIG RUN trainer.strategy=fsdp trainer.compile=true", "trainer.compile works with"),
    ("pretrain CONFIG RUN trainer.accelerator=abacus", "trainer: "),
    ("pretrain CONFIG RUN trainer.accelerator=tpu", "trainer: "),
    ("pretrain CONFIG run_dir=FILE/run", "cannot write"),
    ("distill CONFIG RUN objective.name=lsd", "teacher: give the export"),
    ("distill CONFIG RUN objective.name=lsd teacher=nowhere", "there is no export at nowhere"),
    ("distill CONFIG RUN objective.name=lsd teacher=CLOCK", "is for samples of shape (3, 32, 32)"),
    ("distill CONFIG RUN objective.name=psd teacher=TEACHER", "times.diagonal"),
    ("export nowhere out", "nowhere is not there: give the run_dir"),
    ("export", "required: run_dir"),
]


@pytest.mark.parametrize("line, says", MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(
    line, says, pretrain_yaml, teacher, clock_teacher, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    values = {"CONFIG": pretrain_yaml, "RUN": f"run_dir={tmp_path / 'run'}", "FILE": tmp_path / "file"}
    values |= {"TEACHER": teacher, "CLOCK": clock_teacher}
    for name, value in values.items():
        line = line.replace(name, str(value))
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert printed.err.startswith("error: ") and not (tmp_path / "run").exists()


def test_wandb_that_is_missing_is_named(pretrain_yaml, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["pretrain", str(pretrain_yaml), f"run_dir={tmp_path / 'run'}", "log.wandb=true"]) == 2
    assert "error: this needs wandb: run `make install`" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(pretrain_yaml, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "train" and name != "train.__main__"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["pretrain", str(pretrain_yaml), f"run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == (
        "error: this needs lightning: run `make install`, or pip install -e '.[train]'\n"
    )


def test_a_run_and_its_export(pretrain_yaml, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(["pretrain", str(pretrain_yaml), f"run_dir={run_dir}", "max_steps=2"]) == 0
    printed = capsys.readouterr()
    assert f"python -m train export {run_dir} EXPORT_DIR" in printed.out and "weights_only" not in printed.err
    assert main(["export", str(run_dir), str(tmp_path / "out")]) == 0


def test_ctrl_c(pretrain_yaml, tmp_path):
    """In a process of its own: the step ends with a checkpoint, status 130, and how to go on."""
    run_dir = tmp_path / "run"
    arguments = ["pretrain", str(pretrain_yaml), f"run_dir={run_dir}", "evaluate.every_steps=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *arguments, "max_steps=1000000"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(run_dir.glob("checkpoints/step-*.ckpt")) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.strip() == "stopping after this step; Ctrl-C again stops at once"
    line = output.splitlines()[-1]
    step = int(line.removeprefix(f"{run_dir}: stopped by Ctrl-C after step ").split(";")[0])
    assert line.endswith("; the same command continues")
    assert newest_checkpoint(run_dir / "checkpoints") == (step, run_dir / f"checkpoints/step-{step:08d}.ckpt")


def test_ctrl_c_before_training(pretrain_yaml, tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.run.train", interrupted)
    assert main(["pretrain", str(pretrain_yaml), f"run_dir={tmp_path / 'run'}"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"
