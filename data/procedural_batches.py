"""Batches of a computed set, without files."""

from __future__ import annotations

import numpy as np
import torch

from data.batch import Batch
from data.index import Array
from data.order import SHUFFLE_WINDOW, Order
from data.procedural import procedural
from data.write_shards import SHARD_SIZE
from fmtt.errors import UserError


class ProceduralBatches:
    """The batches of one rank, by step; any step can be asked for at any time.

    Args:
        name: a key of :data:`data.procedural.PROCEDURAL`.
        batch_size: samples per batch and rank.
        seed: of the samples and of their order.
        num_samples: size of the set; None for one that never repeats a sample, on any rank. A finite set
            gives the same batches as shards of the default size that were written with this seed.
        cache_bytes: samples that were computed are kept where the whole set fits in this.

    Raises:
        UserError: when no set has that name, or it is smaller than one batch on every rank.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_samples: int | None = None,
        window: int = SHUFFLE_WINDOW,
        cache_bytes: int = 2**30,
    ) -> None:
        self._set = procedural(name)
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size
        self._order: Order | None = None
        self._store: np.ndarray | None = None
        if num_samples is not None:
            if num_samples < 1:
                raise UserError(f"num_samples must be at least 1, got {num_samples}")
            starts = range(0, num_samples, SHARD_SIZE)
            counts = tuple(min(SHARD_SIZE, num_samples - start) for start in starts)
            self._order = Order(counts, batch_size, seed, rank, world_size, window)
            shape = (num_samples, *self._set.data_shape)
            if not self._set.cond and np.prod(shape) * np.dtype(self._set.dtype).itemsize <= cache_bytes:
                self._store = np.zeros(shape, self._set.dtype)
                self._known = np.zeros(num_samples, dtype=bool)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape *D of a sample."""
        return self._set.data_shape

    @property
    def cond(self) -> dict[str, Array]:
        """Shapes and dtypes of the conditioning."""
        return self._set.cond_arrays()

    @property
    def batches_per_epoch(self) -> int | None:
        """Whole batches per rank in an epoch; None where samples never repeat."""
        return None if self._order is None else self._order.batches_per_epoch

    def batch(self, step: int) -> Batch:
        """Batch ``step`` (counted from 0 over all epochs) of this rank."""
        return self.take(step * self._batch_size + np.arange(self._batch_size))

    def take(self, positions: np.ndarray) -> Batch:
        """The samples at ``positions`` (n,), counted from 0 over all epochs, of this rank's sequence."""
        if self._order is None:
            endless = torch.from_numpy(positions * self._world_size + self._rank)
            return self._set.batch(endless, self._seed)
        shards, rows = self._order.samples(positions).T
        indices = shards * SHARD_SIZE + rows
        if self._store is None:
            return self._compute(indices)
        new = indices[~self._known[indices]]
        if len(new):
            self._store[new] = self._compute(new).x.numpy()
            self._known[new] = True
        return Batch(torch.from_numpy(self._store[indices]).float())

    def _compute(self, indices: np.ndarray) -> Batch:
        """Samples as shards would hold them."""
        x, cond = self._set.batch(torch.from_numpy(indices), self._seed)
        return Batch(torch.from_numpy(x.numpy().astype(self._set.dtype)).float(), cond)
