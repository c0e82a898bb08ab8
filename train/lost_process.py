"""A process of a run that died or fell silent, as the others learn of it."""

from __future__ import annotations

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

        said = str(error)
        if not (isinstance(error, dist.DistError) or "gloo" in said.lower()):
            raise
        cause = said.strip().splitlines()[0].rpartition("] ")[2]
        raise LostProcess(
            f"another process of this run died or does not answer ({cause}); the last checkpoint is whole, "
            "and the same command continues from it"
        ) from error
