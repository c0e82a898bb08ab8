"""Processes of one thread each: a small network gains less from a second thread than from a second task."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from data.processes import end_with_parent
from fmtt.errors import UserError


def begin() -> None:
    """Take one thread, and do not outlive the parent."""
    torch.set_num_threads(1)
    end_with_parent()


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """``count`` processes for the block; what they have not begun when it ends is left undone.

    Raises:
        UserError: when one of them dies.
    """
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=begin) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(
                "a process of the tilting experiment died, perhaps for want of memory; run it again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
