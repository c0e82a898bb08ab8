"""Batches one after another, made ahead of time, for any number of ranks.

The samples are those of ``streams`` sequences, one for each rank that the run began with. An optimizer step
takes the same number from each; laid end to end they are cut into one piece per rank and pass. A run that
goes on with more or fewer ranks therefore sees the same samples in each step, as long as the global batch
(batch size x passes x ranks) is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from data.batch import Batch
from data.mixing import Sequenced
from fmtt.errors import UserError

AHEAD = 2
"""Batches that are made before they are asked for."""


@dataclass(frozen=True)
class Layout:
    """Which places of which streams a rank's passes take.

    Args:
        batch_size: samples per rank and pass.
        accumulate: passes per optimizer step.
        streams: sequences of samples; 0 for one per rank.
        start: places of each stream that are already used, at the beginning of pass 0.

    Raises:
        UserError: when a step's samples cannot be shared out evenly among the streams.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    streams: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        if not self.streams:
            object.__setattr__(self, "streams", self.world_size)
        if self.global_batch % self.streams:
            raise UserError(
                f"the run began with {self.streams} ranks, whose samples cannot be shared out over steps of "
                f"{self.global_batch}; set batch_size x trainer.accumulate x ranks to a multiple of it"
            )

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step on all ranks."""
        return self.batch_size * self.accumulate * self.world_size

    def used(self, passes: int) -> int:
        """Places of each stream that are used after so many passes, a whole number of steps."""
        return self.start + passes * self.batch_size * self.world_size // self.streams

    def places(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The streams (batch_size,) and the places in them (batch_size,) of pass ``number``."""
        step, part = divmod(number, self.accumulate)
        share = self.global_batch // self.streams
        piece = (self.rank * self.accumulate + part) * self.batch_size + np.arange(self.batch_size)
        streams, offsets = np.divmod(piece, share)
        return streams, self.start + step * share + offsets


class Stream:
    """An endless iterable over a rank's batches, from pass 0 of the layout on.

    Args:
        open_stream: ``open_stream(number)`` opens one of the layout's sequences.
        ahead: batches made in the background; what is read does not depend on it.
    """

    def __init__(
        self, open_stream: Callable[[int], Sequenced], layout: Layout, *, ahead: int = AHEAD
    ) -> None:
        self.layout, self._ahead = layout, ahead
        self._open = lru_cache(maxsize=None)(open_stream)

    def batch(self, number: int) -> Batch:
        """The batch of pass ``number``."""
        streams, places = self.layout.places(number)
        parts = [self._open(stream).take(places[streams == stream]) for stream in np.unique(streams).tolist()]
        if len(parts) == 1:
            return parts[0]
        conds = [part.cond or {} for part in parts]
        cond = {name: torch.cat([one[name] for one in conds]) for name in conds[0]}
        return Batch(torch.cat([part.x for part in parts]), cond or None)

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        if not self._ahead:
            while True:
                yield self.batch(number)
                number += 1
        reader = ThreadPoolExecutor(1, thread_name_prefix="data")
        waiting: deque[Future[Batch]] = deque()
        try:
            while True:
                while len(waiting) <= self._ahead:
                    waiting.append(reader.submit(self.batch, number))
                    number += 1
                yield waiting.popleft().result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
