"""index.json: what a folder of shards holds, so that readers need not open a shard to know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.store import Folder, Store
from fmtt.errors import UserError

FORMAT = 1
INDEX_NAME = "index.json"
DTYPES = ("bfloat16", "float16", "float32", "bool", "uint8", "int32", "int64")


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many samples and bytes it holds, and their SHA-256."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Array:
    """Shape and dtype of one array of every sample."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Header:
    """What the set is; two folders with equal headers hold the same samples."""

    name: str
    seed: int
    num_samples: int
    shard_size: int
    x: Array
    cond: dict[str, Array] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} (seed {self.seed}, {self.num_samples} samples, {self.shard_size} a shard)"


@dataclass(frozen=True)
class Index:
    """A set and its shards, in order."""

    header: Header
    shards: tuple[Shard, ...]


def to_json(index: Index) -> dict[str, Any]:
    """The index as it is written to disk."""
    header = asdict(index.header)
    x = header.pop("x")
    content = {"format": FORMAT, **header, "data_shape": x["shape"], "dtype": x["dtype"]}
    return {**content, "shards": [asdict(shard) for shard in index.shards]}


def read_index(path: Path, *, partial: bool = False) -> Index:
    """Read and check an index file; a ``partial`` one may list only some of the shards.

    Raises:
        UserError: when it is missing or malformed; the message names the file and the key.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder written by `python -m data write`")
    return _parse(_load(Folder(path.parent), path.name), str(path), partial)


def fetch_index(store: Store) -> Index:
    """Read and check the index of a store.

    Raises:
        UserError: as :func:`read_index`, and when the store does not answer.
    """
    if isinstance(store, Folder):
        return read_index(store.path / INDEX_NAME)
    return _parse(_load(store, INDEX_NAME), store.where(INDEX_NAME), False)


def _load(store: Store, name: str) -> Any:
    path = store.where(name)
    try:
        content = store.read(name)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `python -m data write` to its end") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(content.decode())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write the shards again") from error


def _parse(content: Any, path: str, partial: bool) -> Index:
    if not isinstance(content, dict):
        raise UserError(f"{path}: an object was expected; write the shards again")
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format is {content.get('format')!r}, this version reads {FORMAT}")

    def get(where: dict[str, Any], key: str, kind: type, least: int | None = None) -> Any:
        value: Any = where.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or (least is not None and value < least):
            raise UserError(f"{path}: {key} is missing or wrong ({value!r}); write the shards again")
        return value

    def array(where: Any, shape_key: str) -> Array:
        if not isinstance(where, dict):
            raise UserError(f"{path}: cond holds {where!r}, an object was expected; write the shards again")
        shape, dtype = get(where, shape_key, list), get(where, "dtype", str)
        if not all(isinstance(n, int) and n > 0 for n in shape) or dtype not in DTYPES:
            raise UserError(f"{path}: {shape_key} {shape!r} or dtype {dtype!r} is not one this version reads")
        return Array(tuple(shape), dtype)

    conds = {name: array(value, "shape") for name, value in get(content, "cond", dict).items()}
    header = Header(
        name=get(content, "name", str),
        seed=get(content, "seed", int),
        num_samples=get(content, "num_samples", int, 1),
        shard_size=get(content, "shard_size", int, 1),
        x=array(content, "data_shape"),
        cond=conds,
    )
    shards = []
    for entry in get(content, "shards", list):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: shards holds {entry!r}, an object was expected; write the shards again")
        name, digest = get(entry, "name", str), get(entry, "sha256", str)
        if Path(name).name != name:
            raise UserError(f"{path}: shard name {name!r} leaves the folder; write the shards again")
        shards.append(Shard(name, get(entry, "count", int, 1), get(entry, "bytes", int, 1), digest))
    if not partial and sum(shard.count for shard in shards) != header.num_samples:
        raise UserError(f"{path}: num_samples is not the sum of the shards' counts; write the shards again")
    return Index(header, tuple(shards))
