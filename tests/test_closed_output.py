"""Commands whose output nobody reads to its end."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

import fmtt.cli.info
from fmtt.__main__ import main

COMMAND = [sys.executable, "-m", "fmtt", "info", "clock-map"]


HELP = [*COMMAND[:3], "--help"]  # argparse itself passes over what fails without a buffer


@pytest.mark.parametrize("command, buffered", [(COMMAND, True), (COMMAND, False), (HELP, True)])
def test_a_reader_who_leaves_early_is_no_error(command: list[str], buffered: bool) -> None:
    """As in ``fmtt info EXPORT | head -1``: the shell's own status for it, and silence."""
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_no_output_at_all_is_no_error() -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *COMMAND], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(args: object) -> None:
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(fmtt.cli.info, "run", breaks)
    for output in (sys.stdout, io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError, match="a worker's"):
            main(["info", "clock-map"])
