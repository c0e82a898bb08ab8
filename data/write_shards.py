"""Write a computed data set as webdataset shards.

The bytes of a shard depend on the set, its seed and the shard's range alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from data.index import Array, Header
from data.procedural import procedural
from data.write_set import Sample, Written, write_set
from fmtt.errors import UserError

SHARD_SIZE = 1024
_CHUNK = 256


def write_procedural(
    name: str,
    out: str | Path,
    num_samples: int,
    *,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Write samples 0 to ``num_samples`` - 1 of a computed set; continue a write that was interrupted.

    Args:
        name: a key of :data:`data.procedural.PROCEDURAL`.
        out: the folder; it may be absent, empty, or hold part or all of the same set.
        processes: how many write at the same time.
        progress: called with the number of samples done, shard by shard.

    Raises:
        UserError: when the name or a number is wrong, the folder holds another set, or it can't be written.
    """
    source = procedural(name)
    for key, value in (("num-samples", num_samples), ("shard-size", shard_size), ("processes", processes)):
        if value < 1:
            raise UserError(f"{key} must be at least 1, got {value}")
    x = Array(source.data_shape, source.dtype)
    header = Header(name, seed, num_samples, shard_size, x, source.cond_arrays())
    return write_set(out, header, ComputedSamples(name, seed), processes=processes, progress=progress)


@dataclass(frozen=True)
class ComputedSamples:
    """The samples of a computed set, by range."""

    name: str
    seed: int

    def __call__(self, start: int, stop: int) -> Iterator[Sample]:
        source = procedural(self.name)
        for first in range(start, stop, _CHUNK):
            x, latents = source.generate(torch.arange(first, min(first + _CHUNK, stop)), self.seed)
            stored = x.to(getattr(torch, source.dtype))
            columns = {name: value.tolist() for name, value in latents._asdict().items()}
            for row in range(len(x)):
                cond = {name: getattr(latents, name)[row] for name in source.cond}
                yield Sample(stored[row], cond, {name: column[row] for name, column in columns.items()})
