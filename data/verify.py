"""Check every sample of a set of shards against its index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.index import Header, Index, Shard, fetch_index
from data.processes import in_processes
from data.read_shard import Problem, read_shard
from data.store import Folder, Store, open_store


class Verified(NamedTuple):
    """What a set holds and what is wrong with it."""

    index: Index
    problems: list[Problem]
    extra: list[str]
    """Tar files of a folder that the index does not list; they are never read."""


def verify_shards(
    source: str | Path | Store,
    progress: Callable[[int, int], None] | None = None,
    *,
    processes: int = 1,
) -> Verified:
    """Read every shard: size, SHA-256, number of samples, every array.

    Args:
        source: what `python -m data write` wrote, or its address: see :func:`data.store.open_store`.
        progress: called with the numbers of samples checked and in all, shard by shard.
        processes: how many read at the same time.

    Raises:
        UserError: when the index is missing or malformed, or the source does not answer.
    """
    store = open_store(source) if isinstance(source, (str, Path)) else source
    index = fetch_index(store)
    found: dict[str, tuple[Problem, ...]] = {}
    done = 0
    check = partial(_check, store, index.header)
    for shard, problems in in_processes(check, index.shards, processes):
        found[shard.name] = problems
        done += shard.count
        if progress is not None:
            progress(done, index.header.num_samples)
    extra: list[str] = []
    if isinstance(store, Folder):
        extra = sorted(path.name for path in store.path.glob("*.tar") if path.name not in found)
    return Verified(index, [problem for shard in index.shards for problem in found[shard.name]], extra)


def _check(store: Store, header: Header, shard: Shard) -> tuple[Problem, ...]:
    return read_shard(store, shard, header).problems
