"""A process of a run that died or fell silent, as the others learn of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class LostProcess(RuntimeError):
    """Another process of the run no longer answers; the message says what this one saw."""


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raise LostProcess for the errors by which gloo and NCCL say that a process does not answer."""
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist  # slow, and the command line imports this file before it listens

        if not (isinstance(error, dist.DistError) or re.search(r"\bgloo\b", str(error), re.IGNORECASE)):
            raise
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rpartition("] ")[2]
        raise LostProcess(
            f"another process of this run died or does not answer ({cause}); the last checkpoint is whole, "
            "and the same command continues from it"
        ) from error
