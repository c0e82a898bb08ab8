"""Stopping on request: a signal is noted, the running step ends, a SLURM job is put back in the queue.

Ctrl-C is such a request too while there is a step to end, but no job is put back. Handlers do little more
than note the signal: a checkpoint written from inside one would run between any two bytecodes, and with
several processes the ranks would wait for each other in different collectives.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""What SLURM sends before the time limit (--signal), on preemption, and with scancel."""
NOTICE = "\nstopping after this step; Ctrl-C again stops at once\n"


class StopRequest:
    """The first of :data:`SIGNALS`, or SIGINT once it is listened to, that this process received, or None."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = os.getpid()

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self._process:
            # A forked worker. SLURM sends SIGUSR1 to every process of a job, but only training answers it.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.signal is None:
            self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # ends this process even where it waits for others
            if os.environ.get("LOCAL_RANK", "0") == "0":
                with suppress(OSError):
                    os.write(2, NOTICE.encode())  # print must not be called from handlers

    def listen_to_ctrl_c(self) -> None:
        """From now on note the first Ctrl-C too; a second one ends the process at once.

        To be called when training begins: before, there is no step to end. :func:`listening` gives it back.
        """
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by a shell, in the background
        if threading.current_thread() is threading.main_thread() and not ignored:
            signal.signal(signal.SIGINT, self.note)


_current: StopRequest | None = None


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Note :data:`SIGNALS` while the block runs. Blocks nest: inner ones share the outermost's request."""
    global _current
    if _current is not None:
        yield _current
        return
    request = _current = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.note) for number in SIGNALS}
        before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        yield request
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes started inside the block never see :data:`SIGNALS`, which SLURM sends to every process of a
    job, nor Ctrl-C, which a terminal does; what this process gets meanwhile is delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def job_id() -> str:
    """This SLURM job as scontrol names it (array tasks as ARRAY_TASK), or an empty string."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def requeue() -> str:
    """Put this SLURM job back in the queue.

    Returns:
        What was done or why not, for people to read.
    """
    job = job_id()
    if not job:
        return "the same command continues"
    if shutil.which("scontrol") is None:  # in a container: slurm/common.sh does it from outside
        return f"scontrol is not here, so the batch script has to requeue job {job}"
    state = _field(_scontrol("show", "job", "-o", job).stdout, "JobState")
    if state != "RUNNING":
        return f"SLURM is ending job {job} ({state or 'unknown'}), so it is not requeued from here"
    done = _scontrol("requeue", job)
    if done.returncode:
        return f"job {job} cannot be requeued: {' '.join(done.stderr.split())}; the same command continues"
    return f"job {job} is requeued"


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(arguments, 1, "", str(error))


def _field(line: str, name: str) -> str:
    return next((word.split("=", 1)[1] for word in line.split() if word.startswith(f"{name}=")), "")
