"""Write a computed data set as webdataset shards.

Each sample is ``x.npy`` (and ``cond.NAME.npy``), never pickled, and ``json`` with its index and latents.
A shard appears under its name only when it is whole, and index.json when all are. Until then
progress.json records the finished shards, so that an interrupted write can be continued. The bytes of a
shard depend on the set, its seed and the shard's range alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds

from data.index import INDEX_NAME, Array, Header, Index, Shard, read_index, to_json
from data.procedural import ProceduralSet, procedural
from fmtt.errors import UserError
from fmtt.files import atomic_write, write_json

PROGRESS_NAME = "progress.json"
SHARD_SIZE = 1024
_CHUNK = 256


class Written(NamedTuple):
    """The index of a finished folder, and how many of its shards were already there."""

    index: Index
    kept: int


def write_procedural(
    name: str,
    out: str | Path,
    num_samples: int,
    *,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Write samples 0 to ``num_samples`` - 1 of a computed set; continue a write that was interrupted.

    Args:
        name: a key of :data:`data.procedural.PROCEDURAL`.
        out: the folder; it may be absent, empty, or hold part or all of the same set.
        progress: called with the number of samples done, shard by shard.

    Raises:
        UserError: when the name or a number is wrong, the folder holds another set, or it can't be written.
    """
    source, out = procedural(name), Path(out)
    for key, value in (("num-samples", num_samples), ("shard-size", shard_size)):
        if value < 1:
            raise UserError(f"{key} must be at least 1, got {value}")
    header = _header(name, source, num_samples, seed, shard_size)
    known = _finished_shards(out, header)
    shards: list[Shard] = []
    kept = 0
    write_json(out / PROGRESS_NAME, to_json(Index(header, tuple(known.values()))))
    for number, start in enumerate(range(0, num_samples, shard_size)):
        stop = min(start + shard_size, num_samples)
        path = out / f"{name}-{number:06d}.tar"
        shard = known.get(path.name)
        if shard is not None and path.is_file() and path.stat().st_size == shard.bytes:
            kept += 1
        else:
            shard = _write_shard(path, header, source, start, stop)
        shards.append(shard)
        known[path.name] = shard
        write_json(out / PROGRESS_NAME, to_json(Index(header, tuple(known.values()))))
        if progress is not None:
            progress(stop)
    index = Index(header, tuple(shards))
    write_json(out / INDEX_NAME, to_json(index))
    (out / PROGRESS_NAME).unlink(missing_ok=True)
    return Written(index, kept)


def _header(name: str, source: ProceduralSet, num_samples: int, seed: int, shard_size: int) -> Header:
    cond: dict[str, Array] = {}
    for key, value in (source.batch(torch.arange(1), seed).cond or {}).items():
        cond[key] = Array(tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
    return Header(name, seed, num_samples, shard_size, Array(source.data_shape, source.dtype), cond)


def _finished_shards(out: Path, header: Header) -> dict[str, Shard]:
    """The shards of this set that the folder records as whole, by name."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose a folder")
    for record in (out / INDEX_NAME, out / PROGRESS_NAME):
        if record.is_file():
            found = read_index(record, partial=record.name == PROGRESS_NAME)
            if found.header != header:
                raise UserError(
                    f"{out} holds {found.header}, not {header}; choose another folder or delete it"
                )
            _remove_leftovers(out)
            return {shard.name: shard for shard in found.shards}
    if any(out.glob("*.tar")):
        raise UserError(f"{out} holds tar files without {INDEX_NAME}; choose another folder")
    return {}


def _remove_leftovers(out: Path) -> None:
    """Delete the temporary files of a write that was killed."""
    for path in (*out.glob(".*.tar.*.tmp"), *out.glob(".*.json.*.tmp")):
        path.unlink(missing_ok=True)


def _write_shard(path: Path, header: Header, source: ProceduralSet, start: int, stop: int) -> Shard:
    with atomic_write(path) as temporary:
        with (
            open(temporary, "wb") as file,
            wds.TarWriter(  # type: ignore[attr-defined]
                file, user="", group="", mode=0o644, mtime=0
            ) as tar,
        ):
            for first in range(start, stop, _CHUNK):
                indices = torch.arange(first, min(first + _CHUNK, stop))
                for sample in _samples(header, source, indices):
                    tar.write(sample)
        content = temporary.read_bytes()
    return Shard(path.name, stop - start, len(content), hashlib.sha256(content).hexdigest())


def _samples(header: Header, source: ProceduralSet, indices: torch.Tensor) -> list[dict[str, Any]]:
    x, latents = source.generate(indices, header.seed)
    stored = x.numpy().astype(np.dtype(header.x.dtype))
    conds = {name: getattr(latents, name).numpy() for name in header.cond}
    columns = {name: value.tolist() for name, value in latents._asdict().items()}
    samples = []
    for row, index in enumerate(indices.tolist()):
        meta = {"index": index, **{name: column[row] for name, column in columns.items()}}
        sample: dict[str, Any] = {"__key__": f"{index:09d}", "x.npy": stored[row]}
        sample |= {f"cond.{name}.npy": np.asarray(value[row]) for name, value in conds.items()}
        samples.append(sample | {"json": json.dumps(meta).encode()})
    return samples
