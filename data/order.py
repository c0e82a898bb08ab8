"""Which samples each rank sees at each step: a pure function of (seed, step, rank, world size).

In epoch e the shards are put in a random order and their samples laid end to end. The line is cut into
one stretch per rank, all of the same length, a whole number of batches (fewer than world size x batch
size samples are left out, other ones in each epoch). A rank shuffles its stretch window by window, so it
reads its shards once per epoch, in order, and can start at any step without the shards before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

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
        batch_size: samples per batch and rank.
        window: samples that are shuffled together, at least one batch.

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
        if self.batches_per_epoch == 0:
            need = self.batch_size * self.world_size
            raise UserError(
                f"the set has {sum(self.counts)} samples, one batch on every rank takes {need}: "
                "write more samples or lower batch_size"
            )

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches per rank and epoch, the same on every rank."""
        return sum(self.counts) // (self.batch_size * self.world_size)

    def batch(self, step: int) -> np.ndarray:
        """The samples of batch ``step``, as (batch_size, 2) int64: shard and row."""
        epoch, position = self._locate(step)
        window, offset = divmod(position, self._window)
        return self._window_samples(epoch, window)[offset : offset + self.batch_size]

    def shards(self, step: int) -> tuple[int, ...]:
        """The shards of the window that batch ``step`` belongs to."""
        epoch, position = self._locate(step)
        return tuple(np.unique(self._window_samples(epoch, position // self._window)[:, 0]).tolist())

    def _locate(self, step: int) -> tuple[int, int]:
        epoch, batch = divmod(step, self.batches_per_epoch)
        return epoch, batch * self.batch_size

    @property
    def _window(self) -> int:
        return max(1, self.window // self.batch_size) * self.batch_size

    @cached_property
    def _window_samples(self):
        """``(epoch, window) -> (M, 2)`` shard and row of the window's samples, in the order they are used."""
        stretch = self.batches_per_epoch * self.batch_size

        @lru_cache(maxsize=2)
        def samples(epoch: int, window: int) -> np.ndarray:
            order = permutation(len(self.counts), self.seed, _SHARDS, epoch)
            ends = np.asarray(self.counts)[order].cumsum()
            size = min(self._window, stretch - window * self._window)
            shuffled = permutation(size, self.seed, _WINDOW, epoch, self.rank, window)
            line = self.rank * stretch + window * self._window + shuffled
            place = np.searchsorted(ends, line, side="right")
            row = line - (ends[place] - np.asarray(self.counts)[order][place])
            return np.stack([order[place], row], axis=1)

        return samples
