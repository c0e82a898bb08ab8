"""Several sources mixed by weight, each in its own exact order.

A rank's sequence is cut into blocks. Each source gets the same number of places in every block, its weight's
share, and a random order of its own decides which. So any place is computed without those before it: which
source it belongs to, and how far that source has come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from data.batch import Batch
from data.counter import permutation
from data.index import Array
from fmtt.errors import UserError

BLOCK = 10_000
"""Places in a block: weights are exact to half a place of it."""
_MIX = 2  # keeps these permutations apart from those of the order


class Source(NamedTuple):
    """Where samples come from, and their share relative to the other sources'."""

    source: str | Path
    weight: float = 1.0


class Sequenced(Protocol):
    """One rank's samples by position."""

    @property
    def data_shape(self) -> tuple[int, ...]: ...

    @property
    def cond(self) -> dict[str, Array]: ...

    @property
    def batches_per_epoch(self) -> int | None:
        """Whole batches per rank in an epoch; None where there are no epochs."""
        ...

    def take(self, positions: np.ndarray) -> Batch:
        """The samples at ``positions`` (n,) of this rank's endless sequence."""
        ...

    def batch(self, step: int) -> Batch:
        """Batch ``step`` of this rank."""
        ...


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Places of each source in a block, by largest remainder.

    Raises:
        UserError: when a weight is not positive, or less than one place.
    """
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UserError(f"data.sources: a weight must be greater than 0 and finite, got {weight}")
    exact = np.asarray(weights, float) / sum(weights) * BLOCK
    places = np.floor(exact).astype(np.int64)
    short = BLOCK - int(places.sum())
    places[np.argsort(places - exact, kind="stable")[:short]] += 1
    if places.min() == 0:
        small = min(weights)
        raise UserError(f"data.sources: weight {small} is less than 1 in {BLOCK} of the sum; leave it out")
    return places


class MixedBatches:
    """The batches of one rank, by step, from several sources.

    Args:
        parts: the sources of this rank, all with the same shapes.
        weights: their shares; they need not sum to 1.
        batch_size: samples per batch and rank.
        seed, rank: of the order in which sources take turns.

    Raises:
        UserError: when a weight is wrong, or the sources do not hold the same arrays.
    """

    def __init__(
        self,
        parts: Sequence[Sequenced],
        weights: Sequence[float],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self._parts, self._batch_size = tuple(parts), batch_size
        self._quotas = quotas(weights)
        for part in self._parts[1:]:
            for what in ("data_shape", "cond"):
                first, other = getattr(self._parts[0], what), getattr(part, what)
                if first != other:
                    raise UserError(
                        f"data.sources: {what} differs, {first} and {other}; mix sets of one kind"
                    )

        @lru_cache(maxsize=4)
        def block(number: int) -> tuple[np.ndarray, np.ndarray]:
            """For each place of a block: its source, and how many places before it that source has."""
            shuffled = permutation(BLOCK, seed, _MIX, rank, number)
            owner = np.searchsorted(self._quotas.cumsum(), shuffled, side="right")
            before = np.empty(BLOCK, np.int64)
            for source, count in enumerate(self._quotas.tolist()):
                before[owner == source] = np.arange(count)
            return owner, before

        self._block = block

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape *D of a sample."""
        return self._parts[0].data_shape

    @property
    def cond(self) -> dict[str, Array]:
        """Shapes and dtypes of the conditioning."""
        return self._parts[0].cond

    @property
    def batches_per_epoch(self) -> None:
        """None: the sources end at different times."""

    def batch(self, step: int) -> Batch:
        """Batch ``step`` (counted from 0) of this rank."""
        return self.take(step * self._batch_size + np.arange(self._batch_size))

    def places(self, positions: np.ndarray) -> np.ndarray:
        """(n, 2) int64: the source of each position, and the position in that source's own sequence."""
        blocks, offsets = np.divmod(positions, BLOCK)
        found = np.empty((len(positions), 2), np.int64)
        for number in np.unique(blocks).tolist():
            here = blocks == number
            owner, before = (values[offsets[here]] for values in self._block(number))
            found[here] = np.stack([owner, number * self._quotas[owner] + before], axis=1)
        return found

    def take(self, positions: np.ndarray) -> Batch:
        """The samples at ``positions`` (n,) of this rank's sequence."""
        owners, own = self.places(positions).T
        present = np.unique(owners).tolist()
        taken = [self._parts[source].take(own[owners == source]) for source in present]
        back = torch.from_numpy(np.argsort(np.argsort(owners, kind="stable"), kind="stable"))
        x = torch.cat([batch.x for batch in taken])[back]
        cond = {name: torch.cat([(batch.cond or {})[name] for batch in taken])[back] for name in self.cond}
        return Batch(x, cond or None)
