"""Write a set of samples as webdataset shards: whole files only, continued where it stopped.

How a sample is stored is said in :mod:`data.members`. A shard appears under its name only when it is whole,
and index.json when all are. Until then progress files record the finished shards. The bytes of a shard depend
on its samples alone, not on who wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from data.index import INDEX_NAME, Header, Index, Shard, read_index, to_json
from data.members import Member, members
from data.processes import in_processes
from fmtt.errors import UserError
from fmtt.files import atomic_write, write_json

PROGRESS_NAME = "progress.json"


class Sample(NamedTuple):
    """One sample: x (*D), its conditioning by name, and anything else that JSON can say of it."""

    x: Tensor | np.ndarray
    cond: Mapping[str, Tensor | np.ndarray] = {}
    meta: Mapping[str, Any] = {}


class Samples(Protocol):
    """``samples(start, stop)`` gives the samples of a range in order, the same ones whenever it is asked."""

    def __call__(self, start: int, stop: int) -> Iterable[Sample]: ...


class Written(NamedTuple):
    """What a folder holds, and how many of its shards were already there.

    The index is whole unless other parts are still to be written.
    """

    index: Index
    kept: int


@dataclass(frozen=True)
class _Task:
    """A shard to be written: its file and its range of samples."""

    path: Path
    start: int
    stop: int


def write_set(
    out: str | Path,
    header: Header,
    samples: Samples,
    *,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Write a set's shards; continue a write that was interrupted.

    Args:
        out: the folder; it may be absent, empty, or hold part or all of the same set.
        header: what the set is: number of samples, shard size, arrays.
        samples: makes the samples. Picklable where there are several processes.
        processes: how many write at the same time.
        part: (i, n): write every n-th shard from the i-th on. Parts may be written at the same time, by
            different machines; the last to finish writes the index.
        progress: called with the number of samples done.

    Raises:
        UserError: when a number is wrong, the folder holds another set, a sample is not as the header says,
            or a file can't be written.
    """
    out = Path(out)
    number, parts = part
    if not 0 <= number < parts:
        raise UserError(f"part must be i of n with 0 <= i < n, got {number} of {parts}")
    members(header)  # refuses a wrong name before anything is written
    known = finished(out, header)
    tasks = _tasks(out, header)
    mine = tasks[number::parts]
    record = out / (PROGRESS_NAME if parts == 1 else f"progress-{number:05d}-of-{parts:05d}.json")
    done = {t.path.name: known[t.path.name] for t in mine if _whole(t.path, known.get(t.path.name))}
    kept, count = len(done), sum(shard.count for shard in done.values())
    write_json(record, to_json(Index(header, tuple(done.values()))))
    todo = [task for task in mine if task.path.name not in done]
    for task in todo:
        _remove_leftovers(task.path)
    for _, shard in in_processes(_ShardWriter(header, samples), todo, processes):
        done[shard.name] = shard
        count += shard.count
        write_json(record, to_json(Index(header, tuple(done.values()))))
        if progress is not None:
            progress(count)
    known = {**finished(out, header), **done}
    index = Index(header, tuple(known[task.path.name] for task in tasks if task.path.name in known))
    if all(_whole(task.path, known.get(task.path.name)) for task in tasks):
        write_json(out / INDEX_NAME, to_json(index))
        for path in _records(out):
            path.unlink(missing_ok=True)
            _remove_leftovers(path)
    return Written(index, kept)


def _tasks(out: Path, header: Header) -> list[_Task]:
    starts = range(0, header.num_samples, header.shard_size)
    return [
        _Task(out / f"{header.name}-{i:06d}.tar", start, min(start + header.shard_size, header.num_samples))
        for i, start in enumerate(starts)
    ]


def _records(out: Path) -> list[Path]:
    return sorted([*out.glob(PROGRESS_NAME), *out.glob("progress-*-of-*.json")])


def _whole(path: Path, shard: Shard | None) -> bool:
    return shard is not None and path.is_file() and path.stat().st_size == shard.bytes


def finished(out: Path, header: Header) -> dict[str, Shard]:
    """The shards of this set that the folder records as whole, by name.

    Raises:
        UserError: when the folder holds another set.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose a folder")
    known: dict[str, Shard] = {}
    records = _records(out)
    for record in (*records, out / INDEX_NAME):
        try:
            found = read_index(record, partial=record.name != INDEX_NAME)
        except UserError:
            if record.exists():
                raise
            continue  # there is none, or another part finished the set meanwhile
        if found.header != header:
            raise UserError(f"{out} holds {found.header}, not {header}; choose another folder or delete it")
        known |= {shard.name: shard for shard in found.shards}
    if not known and not records and any(out.glob("*.tar")):
        raise UserError(f"{out} holds tar files without {INDEX_NAME}; choose another folder")
    return known


def _remove_leftovers(path: Path) -> None:
    """Delete the temporary files of a write that was killed."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class _ShardWriter:
    """Writes one shard."""

    header: Header
    samples: Samples

    def __call__(self, task: _Task) -> Shard:
        import webdataset as wds

        parts = members(self.header)
        name, wanted, came = task.path.name, task.stop - task.start, 0
        with atomic_write(task.path) as temporary:
            with (
                open(temporary, "wb") as file,
                wds.TarWriter(  # type: ignore[attr-defined]
                    file, user="", group="", mode=0o644, mtime=0
                ) as tar,
            ):
                for sample in self.samples(task.start, task.stop):
                    tar.write(_stored(parts, sample, task.start + came, name))
                    came += 1
            if came != wanted:
                raise UserError(f"{name}: {came} samples came, not {wanted}; nothing of it is written")
            content = temporary.read_bytes()
        return Shard(name, wanted, len(content), hashlib.sha256(content).hexdigest())


def _stored(parts: tuple[Member, ...], sample: Sample, index: int, shard: str) -> dict[str, Any]:
    """The sample as webdataset writes it."""
    values = {"x": sample.x, **{f"cond.{name}": value for name, value in sample.cond.items()}}
    stored: dict[str, Any] = {"__key__": f"{index:09d}"}
    try:
        if extra := values.keys() - {part.field for part in parts}:
            raise ValueError(f"{min(extra)} is not in the header")
        for part in parts:
            if part.field not in values:
                raise ValueError(f"{part.field} is missing")
            stored[part.name] = part.encode(values[part.field])
    except ValueError as error:
        raise UserError(f"{shard}, sample {index}: {error}; nothing of this shard is written") from None
    return stored | {"json": json.dumps({"index": index, **sample.meta}).encode()}
