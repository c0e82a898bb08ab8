"""Batches from webdataset shards: exact order, exact resume, nothing skipped silently."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
from torch import Tensor

from data.batch import Batch
from data.index import Array, Shard, fetch_index
from data.members import members
from data.order import SHUFFLE_WINDOW, Order
from data.read_shard import Problem, ShardContent, read_shard
from data.store import TIMEOUT, TRIES, open_store
from fmtt.errors import UserError

CACHE_BYTES = 2**30
MAX_BAD_FRACTION = 0.01

_log = logging.getLogger(__name__)


class ShardBatches:
    """The batches of one rank, by step; any step can be asked for at any time.

    A shard is decoded once and kept in memory while all that is kept fits ``cache_bytes`` (the shards of
    the current shuffle window are always kept). A sample that cannot be read is logged, listed in
    ``problems`` and replaced by another of its shard, or of the next readable one; the same damage gives the
    same replacements, whatever was read before.

    Args:
        source: a folder that `python -m data write` wrote, or its address: see :func:`data.store.open_store`.
        batch_size: samples per batch and rank.
        seed: of the order.
        window: samples that are shuffled together.
        verify: compare each shard with its checksum when it is first read.
        max_bad_fraction: share of the set's samples that may be unreadable; each rank counts those that it
            meets, and meets all in the course of the epochs.
        timeout: seconds without an answer after which a try to fetch a shard is given up.
        tries: how often a shard is asked for.

    Raises:
        UserError: when the index is missing or malformed, the set is smaller than one batch on every
            rank, more samples than allowed cannot be read, or the source does not answer.
    """

    def __init__(
        self,
        source: str | Path,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: int = SHUFFLE_WINDOW,
        cache_bytes: int = CACHE_BYTES,
        verify: bool = True,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        timeout: float = TIMEOUT,
        tries: int = TRIES,
    ) -> None:
        self.source = source
        if not 0 <= max_bad_fraction < 1:
            raise UserError(f"data.max_bad_fraction must lie in [0, 1), got {max_bad_fraction}")
        self.store = open_store(source, timeout=timeout, tries=tries)
        self.index = fetch_index(self.store)
        self._members = members(self.index.header)
        counts = tuple(shard.count for shard in self.index.shards)
        self.order = Order(counts, batch_size, seed, rank, world_size, window)
        self.cache_bytes, self.verify, self.max_bad_fraction = cache_bytes, verify, max_bad_fraction
        self._cache: OrderedDict[int, ShardContent] = OrderedDict()
        self._problems: dict[str, tuple[Problem, ...]] = {}
        self._verified: set[int] = set()
        self._lost: set[int] = set()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape *D of a sample."""
        return self.index.header.x.shape

    @property
    def cond(self) -> dict[str, Array]:
        """Shapes and dtypes of the conditioning."""
        return self.index.header.cond

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches per rank in an epoch."""
        return self.order.batches_per_epoch

    @property
    def problems(self) -> list[Problem]:
        """What could not be read so far."""
        return [problem for shard in self._problems.values() for problem in shard]

    def batch(self, step: int) -> Batch:
        """Batch ``step`` (counted from 0 over all epochs) of this rank."""
        return self.take(step * self.order.batch_size + np.arange(self.order.batch_size))

    def take(self, positions: np.ndarray) -> Batch:
        """The samples at ``positions`` (n,), counted from 0 over all epochs, of this rank's sequence."""
        shards, rows = self.order.samples(positions).T
        stacked = [np.empty((len(rows), *part.shape), part.storage) for part in self._members]
        for shard in np.unique(shards).tolist():
            content, here = self._content(shard), np.flatnonzero(shards == shard)
            picked = rows[here] % len(content)
            for whole, array in zip(stacked, content.arrays, strict=True):
                whole[here] = array[picked]
        self._evict(positions)
        x, *conds = (part.tensor(rows) for part, rows in zip(self._members, stacked, strict=True))
        cond: dict[str, Tensor] = dict(zip(self.index.header.cond, conds, strict=True))
        return Batch(x, cond or None)

    def _content(self, shard: int) -> ShardContent:
        """A shard's samples, at least one; those of the next readable shard where it has none."""
        while shard in self._lost:
            shard = (shard + 1) % len(self.index.shards)
        content = self._cache.get(shard)
        if content is None:
            entry, verify = self.index.shards[shard], self.verify and shard not in self._verified
            content = read_shard(self.store, entry, self.index.header, verify=verify)
            self._report(entry, content)
            if len(content) == 0:
                self._lost.add(shard)
                return self._content(shard)
            self._verified.add(shard)
            self._cache[shard] = content
        self._cache.move_to_end(shard)
        return content

    def _report(self, shard: Shard, content: ShardContent) -> None:
        """Log a shard's problems once; raise when too much is lost."""
        if not content.problems:
            return
        if shard.name not in self._problems:
            self._problems[shard.name] = content.problems
            for problem in content.problems:
                _log.warning("%s: skipped %s", self.source, problem)
        lost = {name: sum(p.count for p in problems) for name, problems in self._problems.items()}
        bad, total = sum(lost.values()), self.order.total
        if bad > self.max_bad_fraction * total:
            worst = max(lost, key=lambda name: lost[name])
            noun = "sample" if lost[worst] == 1 else "samples"
            raise UserError(
                f"{self.source}: {bad} of {total} samples cannot be read, more than data.max_bad_fraction="
                f"{self.max_bad_fraction:g} allows; the worst shard is {worst} with {lost[worst]} {noun}, "
                f"{self._problems[worst][0]}. See `python -m data verify`, and write the set again"
            )

    def _evict(self, positions: np.ndarray) -> None:
        """Forget the least recently used shards beyond the limit, but none of the current windows."""
        held = sum(content.nbytes for content in self._cache.values())
        if held <= self.cache_bytes:
            return
        window = {
            shard for end in (positions.min(), positions.max()) for shard in self.order.shards(int(end))
        }
        for shard in list(self._cache):
            if held <= self.cache_bytes:
                return
            if shard not in window:
                held -= self._cache.pop(shard).nbytes
