"""Read one shard: its samples as arrays, and every sample that could not be read, by name."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander

from data.index import Array, Header, Shard


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
    """The readable samples of a shard: x (n, *D), cond (n, ...) by name; n may be smaller than its count."""

    x: np.ndarray
    cond: dict[str, np.ndarray]
    problems: tuple[Problem, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.x.nbytes + sum(value.nbytes for value in self.cond.values())


def read_shard(folder: Path, shard: Shard, header: Header, *, verify: bool = True) -> ShardContent:
    """Read a shard's samples; problems are returned, not raised.

    A shard that is shorter than its index entry is read up to the cut. One that is longer, or with
    ``verify`` has another checksum, is given up whole: nothing tells which of its bytes are wrong.
    """
    path = folder / shard.name
    arrays = {"x.npy": header.x, **{f"cond.{name}.npy": array for name, array in header.cond.items()}}
    try:
        content = path.read_bytes()
    except OSError as error:
        lost = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return _collect([], arrays, [Problem(shard.name, shard.count, lost)])
    size = f"has {len(content)} bytes where the index says {shard.bytes}"
    if len(content) > shard.bytes:
        return _collect([], arrays, [Problem(shard.name, shard.count, size)])
    cut = len(content) < shard.bytes
    if verify and not cut and hashlib.sha256(content).hexdigest() != shard.sha256:
        reason = "its SHA-256 differs from the index"
        return _collect([], arrays, [Problem(shard.name, shard.count, reason)])
    problems: list[Problem] = []
    failures: list[str] = []
    decoders = {name: _Decoder(array) for name, array in arrays.items()}
    rows: list[tuple[str, dict[str, np.ndarray]]] = []
    seen = 0
    for sample in _samples(shard.name, content, failures):
        key = sample["__key__"]
        if cut and any(name not in sample for name in (*arrays, "json")):
            continue
        seen += 1
        try:
            rows.append((key, {name: decoder(sample, name) for name, decoder in decoders.items()}))
        except ValueError as error:
            problems.append(Problem(f"{shard.name}, sample {key}", 1, str(error)))
    if seen != shard.count:
        reason = f"truncated, {size}" if cut else f"holds {seen} samples where the index says {shard.count}"
        reason += f" [{failures[0]}]" if failures else ""
        problems.append(Problem(shard.name, max(0, shard.count - seen), reason))
    return _collect(rows[: shard.count], arrays, problems, shard.name)


def _samples(name: str, content: bytes, failures: list[str]) -> Iterator[dict[str, Any]]:
    """The shard's samples as webdataset groups them, up to the first error in the archive's structure."""

    def stop(error: Exception) -> bool:
        failures.append(str(error.args[0] if error.args else error).split(" @ ")[0])
        return False

    files = tar_file_expander([{"url": name, "stream": io.BytesIO(content)}], handler=stop)
    return group_by_keys(files, handler=stop)  # type: ignore[return-value]


class _Decoder:
    """Arrays of one known shape and dtype from .npy bytes, without parsing a header that is as expected."""

    def __init__(self, array: Array) -> None:
        self.shape, self.dtype = array.shape, np.dtype(array.dtype)
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.zeros(self.shape, self.dtype), allow_pickle=False)
        self.size = len(stream.getvalue())
        self.prefix = stream.getvalue()[: self.size - self.dtype.itemsize * int(np.prod(self.shape))]

    def __call__(self, sample: dict[str, Any], name: str) -> np.ndarray:
        data = sample.get(name)
        if data is None:
            raise ValueError(f"{name} is missing")
        if len(data) == self.size and data.startswith(self.prefix):
            return np.frombuffer(data, self.dtype, offset=len(self.prefix)).reshape(self.shape)
        try:
            value = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{name} is not a readable array ({str(error).splitlines()[0]})") from None
        if not isinstance(value, np.ndarray) or value.shape != self.shape or value.dtype != self.dtype:
            found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(f"{name} is {found} where the index says {self.dtype} {self.shape}")
        return value


def _collect(
    rows: list[tuple[str, dict[str, np.ndarray]]],
    arrays: dict[str, Array],
    problems: list[Problem],
    shard_name: str = "",
) -> ShardContent:
    """Stack the samples and set apart those with numbers that are not finite."""
    stacked: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        empty = np.zeros((0, *array.shape), array.dtype)
        stacked[name] = np.stack([values[name] for _, values in rows]) if rows else empty
    finite = np.ones(len(rows), dtype=bool)
    for value in stacked.values():
        finite &= np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
    for row in np.flatnonzero(~finite):
        problems.append(
            Problem(f"{shard_name}, sample {rows[row][0]}", 1, "holds numbers that are not finite")
        )
    kept = stacked if finite.all() else {name: value[finite] for name, value in stacked.items()}
    cond = {name.split(".")[1]: value for name, value in kept.items() if name != "x.npy"}
    return ShardContent(kept["x.npy"], cond, tuple(problems))
