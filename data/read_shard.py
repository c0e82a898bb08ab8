"""Read one shard: its samples as arrays, and every sample that could not be read, by name."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.index import Header, Shard
from data.members import Member, members
from data.store import Store


class Problem(NamedTuple):
    """Samples that cannot be used: how many, where, and why."""

    where: str
    count: int
    reason: str

    def __str__(self) -> str:
        noun = "sample" if self.count == 1 else "samples"
        return f"{self.where}: {self.reason} ({self.count} {noun})"


@dataclass(frozen=True)
class ShardContent:
    """The readable samples of a shard, n of them, which may be fewer than its count."""

    arrays: tuple[np.ndarray, ...]
    """(n, ...) each, in the order of :func:`data.members.members`."""
    problems: tuple[Problem, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(value.nbytes for value in self.arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])


def read_shard(store: Store, shard: Shard, header: Header, *, verify: bool = True) -> ShardContent:
    """Read a shard's samples; problems are returned, not raised.

    A shard that is shorter than its index entry is read up to the cut. One that is longer, or with
    ``verify`` has another checksum, is given up whole: nothing tells which of its bytes are wrong.

    Raises:
        UserError: when the store does not answer.
    """
    parts = members(header)
    try:
        content = store.read(shard.name)
    except OSError as error:
        lost = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return _collect([], parts, [Problem(shard.name, shard.count, lost)])
    size = f"has {len(content)} bytes where the index says {shard.bytes}"
    if len(content) > shard.bytes:
        return _collect([], parts, [Problem(shard.name, shard.count, size)])
    cut = len(content) < shard.bytes
    if verify and not cut and hashlib.sha256(content).hexdigest() != shard.sha256:
        reason = "its SHA-256 differs from the index"
        return _collect([], parts, [Problem(shard.name, shard.count, reason)])
    problems: list[Problem] = []
    failures: list[str] = []
    rows: list[tuple[str, list[np.ndarray]]] = []
    seen = 0
    for key, sample in _samples(content, failures):
        if cut and any(name not in sample for name in (*(part.name for part in parts), "json")):
            continue
        seen += 1
        try:
            rows.append((key, [part.decode(sample) for part in parts]))
        except ValueError as error:
            problems.append(Problem(f"{shard.name}, sample {key}", 1, str(error)))
    if seen != shard.count:
        reason = f"truncated, {size}" if cut else f"holds {seen} samples where the index says {shard.count}"
        reason += f" [{failures[0]}]" if failures else ""
        problems.append(Problem(shard.name, max(0, shard.count - seen), reason))
    return _collect(rows[: shard.count], parts, problems, shard.name)


def _samples(content: bytes, failures: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The shard's samples, key and members, up to the first error in the archive's structure.

    webdataset's reader gives the same from a stream; with the bytes at hand, cutting them up is much faster.
    """
    current, found = "", {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                end = member.offset_data + member.size
                if end > len(content):
                    raise tarfile.ReadError("unexpected end of data")
                key, _, name = member.name.partition(".")
                if key != current:
                    if found:
                        yield current, found
                    current, found = key, {}
                found[name] = content[member.offset_data : end]
                tar.members.clear()  # type: ignore[attr-defined]  # else every header is kept
    except (tarfile.TarError, ValueError) as error:
        failures.append(str(error))
    if found:
        yield current, found


def _collect(
    rows: list[tuple[str, list[np.ndarray]]],
    parts: tuple[Member, ...],
    problems: list[Problem],
    shard_name: str = "",
) -> ShardContent:
    """Stack the samples and set apart those with numbers that are not finite."""
    stacked = []
    for number, part in enumerate(parts):
        empty = np.zeros((0, *part.shape), part.storage)
        stacked.append(np.stack([values[number] for _, values in rows]) if rows else empty)
    finite = np.ones(len(rows), dtype=bool)
    for part, value in zip(parts, stacked, strict=True):
        finite &= part.finite(value)
    for row in np.flatnonzero(~finite):
        problems.append(
            Problem(f"{shard_name}, sample {rows[row][0]}", 1, "holds numbers that are not finite")
        )
    kept = stacked if finite.all() else [value[finite] for value in stacked]
    return ShardContent(tuple(kept), tuple(problems))
