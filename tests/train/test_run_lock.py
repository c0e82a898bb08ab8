"""A run folder belongs to one process at a time, and to nobody once that process is gone."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from fmtt.errors import UserError
from train.run_lock import run_lock


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """``holder()``: the number of another process that holds the lock until it is killed."""
    started = []

    def start() -> int:
        ready, held = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                with run_lock(tmp_path):
                    os.write(held, b".")
                    signal.pause()
            finally:
                os._exit(1)
        started.append(process)
        assert os.read(ready, 1) == b"."
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def test_a_second_process_is_refused_until_the_first_is_killed(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = holder()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(UserError) as caught, run_lock(tmp_path):
        pass
    assert re.search(rf"trained by process {first} on .* \(SLURM job 7\)", str(caught.value))
    assert "\n" not in str(caught.value) and "another run_dir" in str(caught.value)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    with run_lock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()
    assert (tmp_path / "lock").read_text() == ""


def test_a_requeued_job_waits_for_its_earlier_self(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = holder()
    start = time.monotonic()
    with pytest.raises(UserError), run_lock(tmp_path, own_job_seconds=0.5):
        pass
    assert time.monotonic() - start > 0.5
    killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    killer.start()
    with run_lock(tmp_path):
        killer.join()


def test_other_ranks_do_not_ask(holder, tmp_path, monkeypatch):
    holder()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with run_lock(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked.*start this run only once"), run_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*another run_dir"), run_lock(tmp_path / "file/run"):
        pass


@pytest.mark.parametrize("there, goes", [(None, True), ("config.yaml", True), ("metrics.csv", False)])
def test_a_refusal_takes_an_unused_folder_away(there, goes, tmp_path):
    """One that was made here, and holds nothing that training wrote."""
    folder = tmp_path / "new" / "run"
    for made_before in (False, True):
        with pytest.raises(UserError, match="no such key"), run_lock(folder):
            if there:
                (folder / there).write_text("x")
            raise UserError("no such key")
        assert folder.exists() is (made_before or not goes)
        folder.mkdir(exist_ok=True)
    with pytest.raises(RuntimeError), run_lock(tmp_path / "broken"):
        raise RuntimeError
    assert (tmp_path / "broken").is_dir()
