"""Which samples each rank sees: a pure function of (seed, rank, number of ranks, position).

In epoch e the shards are put in a random order and their samples laid end to end. The line is cut into one
stretch per rank, equally long but for one sample, so that every sample is read exactly once. A rank shuffles
its stretch window by window, reads its shards in order, and can start anywhere without the shards before.
Its sequence is its stretches of all epochs end to end. The lengths go round: after any number of epochs, two
ranks differ by one sample at most, and every rank can be asked for the same number of batches.

There is no shuffle buffer. A buffer's order depends on all that went through it, so that resuming means
reading it all again; a shuffled window mixes as far and is computed from its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from data.counter import permutation
from fmtt.errors import UserError

SHUFFLE_WINDOW = 16384
"""Samples that are shuffled together."""
_SHARDS, _WINDOW = 0, 1  # keep the two kinds of permutation apart


@dataclass(frozen=True)
class Order:
    """The order of one rank.

    Args:
        counts: samples in each shard.
        batch_size: samples per batch and rank. The sequence of samples does not depend on it.
        window: samples that are shuffled together.

    Raises:
        UserError: when the set has fewer samples than one batch for every rank.
    """

    counts: tuple[int, ...]
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    window: int = SHUFFLE_WINDOW

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank must lie in [0, {self.world_size}), got {self.rank}")
        if self.window < 1:
            raise UserError(f"window must be at least 1, got {self.window}")
        if self.batches_per_epoch == 0:
            need = self.batch_size * self.world_size
            raise UserError(
                f"the set has {self.total} samples, one batch on every rank takes {need}: "
                "write more samples or lower batch_size"
            )

    @cached_property
    def total(self) -> int:
        """Samples of the set."""
        return sum(self.counts)

    @cached_property
    def batches_per_epoch(self) -> int:
        """Whole batches per rank in an epoch; a batch may also end one epoch and begin the next."""
        return self.total // (self.batch_size * self.world_size)

    def batch(self, step: int) -> np.ndarray:
        """The samples of batch ``step``, as (batch_size, 2) int64: shard and row."""
        return self.samples(step * self.batch_size + np.arange(self.batch_size))

    def samples(self, positions: np.ndarray) -> np.ndarray:
        """The samples at ``positions`` (n,) of this rank's sequence, as (n, 2) int64: shard and row."""
        epochs = self._epoch(positions)
        windows, offsets = np.divmod(positions - self._start(epochs), self.window)
        found = np.empty((len(positions), 2), np.int64)
        for epoch, window in np.unique(np.stack([epochs, windows], axis=1), axis=0).tolist():
            here = (epochs == epoch) & (windows == window)
            found[here] = self._window_samples(epoch, window)[offsets[here]]
        return found

    def shards(self, position: int) -> tuple[int, ...]:
        """The shards of the window that ``position`` belongs to."""
        epoch = int(self._epoch(position))
        window = int(position - self._start(epoch)) // self.window
        return tuple(np.unique(self._window_samples(epoch, window)[:, 0]).tolist())

    def _start(self, epoch: Any, rank: Any = None) -> Any:
        """Samples that a rank (this one) has seen before ``epoch``; summed over ranks, epoch x total."""
        return (epoch * self.total + (self.rank if rank is None else rank)) // self.world_size

    def _epoch(self, position: Any) -> Any:
        """The last epoch whose start is not after ``position``."""
        return ((position + 1) * self.world_size - 1 - self.rank) // self.total

    @cached_property
    def _window_samples(self):
        """``(epoch, window) -> (M, 2)`` shard and row of the window's samples, in the order they are used."""
        counts = np.asarray(self.counts)

        @lru_cache(maxsize=4)
        def samples(epoch: int, window: int) -> np.ndarray:
            ranks = np.arange(self.rank + 1)
            lengths = self._start(epoch + 1, ranks) - self._start(epoch, ranks)
            size = min(self.window, int(lengths[-1]) - window * self.window)
            order = permutation(len(counts), self.seed, _SHARDS, epoch)
            ends = counts[order].cumsum()
            shuffled = permutation(size, self.seed, _WINDOW, epoch, self.rank, window)
            line = int(lengths[:-1].sum()) + window * self.window + shuffled
            place = np.searchsorted(ends, line, side="right")
            row = line - (ends[place] - counts[order][place])
            return np.stack([order[place], row], axis=1)

        return samples
