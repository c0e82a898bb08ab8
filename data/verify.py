"""Check every sample of a folder of shards against its index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data.index import INDEX_NAME, Index, read_index
from data.read_shard import Problem, read_shard


class Verified(NamedTuple):
    """What a folder holds and what is wrong with it."""

    index: Index
    problems: list[Problem]
    extra: list[str]
    """Tar files that the index does not list; they are never read."""


def verify_shards(folder: str | Path, progress: Callable[[int], None] | None = None) -> Verified:
    """Read every shard: size, SHA-256, number of samples, every array.

    Args:
        folder: what `python -m data write` wrote.
        progress: called with the number of samples checked, shard by shard.

    Raises:
        UserError: when the index is missing or malformed.
    """
    folder = Path(folder)
    index = read_index(folder / INDEX_NAME)
    problems: list[Problem] = []
    done = 0
    for shard in index.shards:
        problems += read_shard(folder, shard, index.header).problems
        done += shard.count
        if progress is not None:
            progress(done)
    listed = {shard.name for shard in index.shards}
    return Verified(
        index, problems, sorted(path.name for path in folder.glob("*.tar") if path.name not in listed)
    )
