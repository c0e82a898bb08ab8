"""The command line: exit statuses, one-line errors, summaries."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from data.__main__ import main


def test_write_then_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [
        "write",
        "clock",
        "--out",
        str(tmp_path),
        "--num-samples",
        "12",
        "--shard-size",
        "5",
        "--seed",
        "3",
    ]
    assert main(command) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {
        key: summary[key] for key in ("command", "set", "seed", "num_samples", "shards", "shards_kept")
    } == {
        "command": "write",
        "set": "clock",
        "seed": 3,
        "num_samples": 12,
        "shards": 3,
        "shards_kept": 0,
    }
    assert main(command) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["shards_kept"] == 3
    assert main(["verify", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert report["ok"] is True and report["problems"] == [] and report["bad_samples"] == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "every sample in order" in captured.out


def test_verify_lists_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["write", "mixture", "--out", str(tmp_path), "--num-samples", "12", "--shard-size", "4"])
    (tmp_path / "mixture-000000.tar").unlink()
    flipped = bytearray((tmp_path / "mixture-000002.tar").read_bytes())
    flipped[600] ^= 1
    (tmp_path / "mixture-000002.tar").write_bytes(bytes(flipped))
    (tmp_path / "stray.tar").write_bytes(b"")
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "mixture-000000.tar: is missing (4 samples) and 1 more" in captured.err
    assert "stray.tar: not in the index" in captured.out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ok"] is False and summary["bad_samples"] == 8 and summary["unlisted"] == ["stray.tar"]
    assert len(summary["problems"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: write|encode|verify"),
        (["enlarge", "x"], "invalid choice: 'enlarge'"),
        (["encode", "x"], "required: --model, --out"),
        (["write"], "required: set, --out, --num-samples"),
        (["write", "clock", "--out", "OUT", "--num-samples", "4x"], "invalid int value: '4x'"),
        (["write", "clock", "--out", "OUT", "--num", "4"], "required: --num-samples"),
        (
            ["write", "clock", "--out", "OUT", "--num-samples", "4", "--fast"],
            "unrecognized arguments: --fast",
        ),
        (["write", "clok", "--out", "OUT", "--num-samples", "4"], "did you mean 'clock'"),
        (["write", "clock", "--out", "OUT", "--num-samples", "-4"], "num-samples must be at least 1"),
        (["write", "clock", "--out", "OUT/file/x", "--num-samples", "4"], "cannot write"),
        (["verify", "OUT/nowhere"], "is not a folder"),
        (["verify", "pipe:cat OUT/{shard}"], "give --out DIR"),
        (["verify", "OUT", "--timeout", "0"], "data.timeout (--timeout) must be greater than 0"),
        (["verify", ""], "SOURCE of verify) is empty"),
        (["write", "clock", "--out", "OUT/x", "--num-samples", "4", "--processes", "0"], "processes must be"),
        (["verify", "OUT"], "index.json is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    (tmp_path / "file").write_text("")
    try:
        status = main([argument.replace("OUT", str(tmp_path)) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_anything_else_is_status_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.__main__.write_procedural", interrupt)
    assert main(["write", "clock", "--out", str(tmp_path), "--num-samples", "4"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert main(["write", "clock", "--out", str(tmp_path / "out"), "--num-samples", "3"]) == 2
    assert capsys.readouterr().err == (
        "error: this needs webdataset: run `make install`, or pip install -e '.[train]'\n"
    )


def test_as_a_process(run_python, tmp_path: Path):
    done = run_python("-m", "data", "write", "mixture", "--out", tmp_path / "set", "--num-samples", "8")
    assert (done.returncode, done.stderr) == (0, "")
    wrong = run_python("-m", "data", "verify", tmp_path / "nothing")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr


def test_a_terminal_gets_a_progress_bar(root: Path, tmp_path: Path):
    master, terminal = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "data",
        "write",
        "mixture",
        "--out",
        str(tmp_path),
        "--num-samples",
        "3000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, stderr=terminal, stdout=subprocess.PIPE, env=environment, timeout=120)
    os.close(terminal)
    shown = os.read(master, 100_000).decode(errors="replace")
    os.close(master)
    assert process.returncode == 0
    assert "write mixture" in shown
