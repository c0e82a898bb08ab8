"""One process at a time works on a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from fmtt.errors import UserError
from train.preemption import job_id

OWN_JOB_SECONDS = 120.0
"""How long a requeued job waits for its earlier self, whose lock a file server may give up late."""


@contextmanager
def run_lock(run_dir: Path, own_job_seconds: float = OWN_JOB_SECONDS) -> Iterator[None]:
    """Hold ``run_dir/lock`` on rank 0 while the block runs.

    The kernel frees the lock when the process ends, however it ends; flock also works between the nodes of
    an NFS share. A file system without locks is reported, and the run goes on. A folder that was made here
    goes again where the block refuses what the user gave before anything came of it.

    Raises:
        UserError: naming the process that holds it, or when the folder cannot be written.
    """
    if rank_zero_only.rank != 0:
        yield
        return
    path, made = run_dir / "lock", not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another run_dir") from error
    with file:
        _acquire(file, run_dir, own_job_seconds)
        _write(file, {"host": socket.gethostname(), "pid": os.getpid(), "job": job_id()})
        try:
            yield
        except UserError:
            if made:
                _remove_if_unused(run_dir)
            raise
        finally:
            _write(file, None)


def _remove_if_unused(run_dir: Path) -> None:
    """Remove the folder of a run that was refused before it trained."""
    if {path.name for path in run_dir.rglob("*") if path.is_file()} <= {"lock", "config.yaml"}:
        shutil.rmtree(run_dir, ignore_errors=True)


def _acquire(file: IO[str], run_dir: Path, own_job_seconds: float) -> None:
    deadline = time.monotonic() + own_job_seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(file)
            if not (job_id() and holder.get("job") == job_id()) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        except OSError as error:
            return rank_zero_warn(f"{run_dir} cannot be locked ({error.strerror}): start this run only once")
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}"
        who += f" (SLURM job {holder['job']})" if holder.get("job") else ""
    raise UserError(f"{run_dir} is being trained by {who}: wait for it, stop it, or give another run_dir")


def _read(file: IO[str]) -> dict[str, Any]:
    try:
        file.seek(0)
        content = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: IO[str], holder: dict[str, Any] | None) -> None:
    """Say who holds the lock; on a full disk it is held namelessly."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        if holder is not None:
            os.write(file.fileno(), f"{json.dumps(holder)}\n".encode())
