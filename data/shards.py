"""Batches from a folder of webdataset shards: exact order, exact resume, nothing skipped silently."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from data.batch import Batch
from data.index import INDEX_NAME, Shard, read_index
from data.order import SHUFFLE_WINDOW, Order
from data.read_shard import Problem, ShardContent, read_shard
from fmtt.errors import UserError

CACHE_BYTES = 2**30
MAX_BAD_FRACTION = 0.01

_log = logging.getLogger(__name__)


class ShardBatches:
    """The batches of one rank, by step; any step can be asked for at any time.

    A shard is decoded once and kept in memory while all that is kept fits ``cache_bytes`` (the shards of
    the current shuffle window are always kept). A sample that cannot be read is logged, listed in
    ``problems`` and replaced by another of its shard, or of the next readable one.

    Args:
        folder: what `python -m data write` wrote.
        batch_size: samples per batch and rank.
        seed: of the order.
        window: samples that are shuffled together.
        verify: compare each shard with its checksum when it is first read.
        max_bad_fraction: share of the set's samples that may be unreadable.

    Raises:
        UserError: when the index is missing or malformed, the set is smaller than one batch on every
            rank, or more samples than allowed cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: int = SHUFFLE_WINDOW,
        cache_bytes: int = CACHE_BYTES,
        verify: bool = True,
        max_bad_fraction: float = MAX_BAD_FRACTION,
    ) -> None:
        self.folder = Path(folder)
        if not 0 <= max_bad_fraction < 1:
            raise UserError(f"max_bad_fraction must lie in [0, 1), got {max_bad_fraction}")
        self.index = read_index(self.folder / INDEX_NAME)
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
    def batches_per_epoch(self) -> int:
        """Batches per rank and epoch."""
        return self.order.batches_per_epoch

    @property
    def problems(self) -> list[Problem]:
        """What could not be read so far."""
        return [problem for shard in self._problems.values() for problem in shard]

    def batch(self, step: int) -> Batch:
        """Batch ``step`` (counted from 0 over all epochs) of this rank."""
        picks = self.order.batch(step)
        contents = {shard: self._content(shard) for shard in np.unique(picks[:, 0]).tolist()}
        self._evict(step)
        places = [(contents[shard], row) for shard, row in picks.tolist()]
        x = np.stack([content.x[row % len(content.x)] for content, row in places])
        cond = {
            name: torch.from_numpy(np.stack([c.cond[name][row % len(c.x)] for c, row in places]))
            for name in self.index.header.cond
        }
        return Batch(torch.from_numpy(x).float(), cond or None)

    def _content(self, shard: int) -> ShardContent:
        """A shard's samples, at least one; those of the next readable shard where it has none."""
        while shard in self._lost:
            shard = (shard + 1) % len(self.index.shards)
        content = self._cache.get(shard)
        if content is None:
            entry, verify = self.index.shards[shard], self.verify and shard not in self._verified
            content = read_shard(self.folder, entry, self.index.header, verify=verify)
            self._report(entry, content)
            if len(content.x) == 0:
                self._lost.add(shard)
                return self._content(shard)
            self._verified.add(shard)
            self._cache[shard] = content
        self._cache.move_to_end(shard)
        return content

    def _report(self, shard: Shard, content: ShardContent) -> None:
        """Log a shard's problems once; raise when too much of the set is lost."""
        if not content.problems:
            return
        if shard.name not in self._problems:
            self._problems[shard.name] = content.problems
            for problem in content.problems:
                _log.warning("%s: skipped %s", self.folder, problem)
        bad, total = sum(problem.count for problem in self.problems), self.index.header.num_samples
        if bad > self.max_bad_fraction * total:
            raise UserError(
                f"{self.folder}: {bad} of {total} samples cannot be read, more than "
                f"max_bad_fraction={self.max_bad_fraction:g} allows; first, {self.problems[0]}. "
                "See `python -m data verify`, and write the set again"
            )

    def _evict(self, step: int) -> None:
        """Forget the least recently used shards beyond the limit, but none of the current window."""
        held = sum(content.nbytes for content in self._cache.values())
        if held <= self.cache_bytes:
            return
        window = set(self.order.shards(step))
        for shard in list(self._cache):
            if held <= self.cache_bytes:
                return
            if shard not in window:
                held -= self._cache.pop(shard).nbytes
