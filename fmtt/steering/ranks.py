"""Particles sharded over processes: which rows a rank holds, and how ranks meet.

A batch of M rows is cut into contiguous shares. What belongs to a population (log-weights, log Z, lambda,
ancestors) is held by every rank alike: increments are gathered, and what follows from them by rounding-prone
arithmetic is taken from rank 0. Random numbers are drawn for all rows on every rank and cut, so a run agrees
with one process's as a chunked run does. Survivors of a resampling go straight from the rank that holds them
to the ranks that continue them, each at most once.

A rank that raises an error tells the others, and all of them raise. A rank that dies, or that keeps the
others waiting for longer than the time-out, ends every other rank's run with a RankError.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import smc

T = TypeVar("T", bound=tuple[Any, ...])

TIMEOUT = 600.0
"""Seconds that a rank waits for the others."""
MESSAGE = 512
"""Bytes in which a rank says what went wrong: its kind, then text."""


class RankError(RuntimeError):
    """Another process ended, failed or kept this one waiting for too long; the run cannot go on."""


class Ranks:
    """This process among ``size`` of them, numbered ``rank``; alone by default.

    Attributes:
        timeout: seconds to wait for the others.
        device: where what is sent has to be.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, timeout: float = TIMEOUT, device: torch.device | str = "cpu"
    ) -> None:
        self.rank, self.size, self.timeout, self.device = rank, size, timeout, torch.device(device)

    def rows(self, total: int, rank: int | None = None) -> slice:
        """The share of ``total`` rows that a rank, this one if omitted, holds."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.size, total * (rank + 1) // self.size)

    def share(self, whole: Tensor) -> Tensor:
        """This rank's rows of ``whole`` (M, ...)."""
        return whole if self.size == 1 else whole[self.rows(len(whole))]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """All ranks' rows joined, (total, ...), from this one's."""
        if self.size == 1:
            return own
        most = -(-total // self.size)
        sent = torch.zeros(most, _width(own), dtype=torch.uint8, device=self.device)
        sent[: len(own)] = _bytes(own).to(self.device)
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        self._wait("gathering results", lambda: dist.all_gather(parts, sent, async_op=True))
        counts = [len(range(total)[self.rows(total, r)]) for r in range(self.size)]
        joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return _like(joined, own)

    def exchange(self, own: T, index: Tensor, total: int) -> T:
        """This rank's share of rows ``index`` (M,) of every tensor of a NamedTuple, nested ones too.

        Args:
            own: this rank's share of ``total`` rows; None stays None.
            index: row numbers among all, the same on every rank.
        """
        if self.size == 1:
            return smc.gather(own, index)
        needed, inverse = self.share(index).unique(
            return_inverse=True
        )  # sorted, and so are the ranks' shares
        starts = [self.rows(total, r).start for r in range(self.size)]
        received = _counts(needed, [*starts, total])
        mine, wanted = self.rows(total), []
        for r in range(self.size):
            rows = index[self.rows(len(index), r)].unique()
            wanted.append(rows[(rows >= mine.start) & (rows < mine.stop)] - mine.start)
        sent, outgoing = [len(rows) for rows in wanted], torch.cat(wanted)

        def rows_of(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, tuple):
                return type(value)(*map(rows_of, value))
            there = _bytes(value[outgoing]).to(self.device)
            here = there.new_empty(sum(received), there.shape[1])
            self._wait(
                "exchanging survivors",
                lambda: dist.all_to_all_single(here, there, received, sent, async_op=True),
            )
            return _like(here, value)[inverse]

        return rows_of(own)

    def same(self, value: Tensor) -> Tensor:
        """Rank 0's ``value``, on every rank."""
        if self.size == 1:
            return value
        sent = value.to(self.device).contiguous()
        sent = sent.clone() if sent is value else sent
        self._wait("agreeing with rank 0", lambda: dist.broadcast(sent, 0, async_op=True))
        return sent.to(value.device)

    def lead(self, decide: Callable[[], bool], what: str) -> bool:
        """What rank 0 decides; no other rank is asked."""
        if self.size == 1:
            return decide()
        with self.together(what):
            found = self.rank == 0 and decide()
        return bool(self.same(torch.tensor([found])))

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Leave the block on every rank alike: an error in it on one is an error on all.

        Raises:
            UserError: where a rank raised one. RankError: where it raised anything else.
        """
        if self.size == 1:
            yield
            return
        failure = None
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            failure = error
        kind = 0 if failure is None else 1 if isinstance(failure, UserError) else 2
        text = "" if failure is None else f"{type(failure).__name__ + ': ' if kind == 2 else ''}{failure}"
        said = bytes([kind]) + text.encode()[: MESSAGE - 1]
        note = torch.tensor([list(said.ljust(MESSAGE, b"\0"))], dtype=torch.uint8)
        notes = self.gather(note, self.size)
        if failure is not None:
            raise failure
        for r, row in enumerate(notes.tolist()):
            message = bytes(row[1:]).rstrip(b"\0").decode(errors="replace")
            if row[0] == 1:
                raise UserError(f"{message} (on rank {r} of {self.size})")
            if row[0] == 2:
                raise RankError(f"rank {r} of {self.size} failed {what}: {message}")

    def check_agreement(
        self, settings: object, generator: torch.Generator | None, *given: Tensor | None
    ) -> None:
        """Refuse to run where ranks were given different things.

        Args:
            settings: anything whose ``repr`` tells all of it.
            given: tensors that the user passed.

        Raises:
            UserError: on every rank.
        """
        if self.size == 1:
            return
        seeds = None if generator is None else generator.get_state()
        told = [zlib.crc32(repr(settings).encode())]
        told += [
            0 if v is None else zlib.crc32(_bytes(v.detach().cpu()).numpy().tobytes())
            for v in (seeds, *given)
        ]
        table = self.gather(torch.tensor([told]), self.size)
        if not bool((table == table[0]).all()):
            raise UserError(
                f"the {self.size} processes were given different arguments, seeds or tensors: give all of "
                "them the same, or pass processes='one' for a run of its own in each"
            )

    def generator(self, given: torch.Generator | None, device: torch.device) -> torch.Generator | None:
        """``given``; without one, among several ranks, one that rank 0 seeds for all."""
        if self.size == 1 or given is not None:
            return given
        seed = self.same(torch.randint(2**62, (1,)))
        return torch.Generator(device).manual_seed(int(seed))

    def _wait(self, what: str, start: Callable[[], Any]) -> None:
        try:
            start().wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RankError(
                f"rank {self.rank} of {self.size}, {what}: another process ended, or kept this one waiting "
                f"for more than {self.timeout:g} s ({reason})"
            ) from error


ALONE = Ranks()


def _width(x: Tensor) -> int:
    return math.prod(x.shape[1:]) * x.element_size()


def _bytes(x: Tensor) -> Tensor:
    """Rows (B, ...) of any dtype as bytes (B, width)."""
    return x.reshape(len(x), math.prod(x.shape[1:])).contiguous().view(torch.uint8)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """The inverse of :func:`_bytes`, for rows of the kind of ``x``."""
    return rows.contiguous().view(x.dtype).reshape(len(rows), *x.shape[1:]).to(x.device)


def _counts(rows: Tensor, edges: list[int]) -> list[int]:
    """How many of the sorted ``rows`` fall between neighbouring edges."""
    at = torch.searchsorted(rows, torch.tensor(edges, device=rows.device))
    return at.diff().tolist()
