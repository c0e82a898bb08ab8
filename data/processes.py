"""The same function on many items in several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from fmtt.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """``(item, function(item))`` as they are ready; in this process where ``processes`` is 1.

    What is begun is ended when the caller stops early; the rest is not begun. Processes end with this one.

    Args:
        function: with what it holds, picklable.
        items: picklable too.

    Raises:
        UserError: when a process dies.
    """
    if processes < 1:
        raise UserError(f"processes must be at least 1, got {processes}")
    if processes == 1 or len(items) < 2:
        for item in items:
            yield item, function(item)
        return
    # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(min(processes, len(items)), get_context("spawn"), _begin)
    try:
        waiting = {pool.submit(function, item): item for item in items}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool:
        raise UserError(
            "a process died (out of memory?); run the same command again, with fewer processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Leave Ctrl-C to the parent, take one thread, and do not outlive the parent."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ends."""

    def follow() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
