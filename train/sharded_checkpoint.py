"""Checkpoints that no process ever holds whole: a folder with each process's pieces, written or read at once.

A folder holds one safetensors file per process with its pieces of every cut tensor, as
torch.distributed.checkpoint writes them; ``rest.pt`` with everything else, where the place of a cut tensor
says its name; and ``index.json`` with the size and CRC-32 of every file. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_pieces
from torch.distributed.checkpoint.state_dict_saver import save as save_pieces
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import empty as empty_pieces

from fmtt.files import sync

FORMAT = 1
INDEX, REST, PIECES = "index.json", "rest.pt", "*.safetensors"
NAME = "name of the tensor in pieces"
"""Key of what stands in rest.pt for a cut tensor."""
BLOCK = 1 << 24

Fill = Callable[[str, Any], Any]
"""``fill(name, leaf)``: what is put in the place of a leaf, which is also what stands for a cut tensor."""


def save(content: dict[str, Any], path: Path) -> None:
    """Write ``content`` as the folder ``path``; every process calls it, and the name appears last.

    A process that cannot write is reported, nothing is left, and training goes on.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    problem = _write(content, path, temporary)
    if problem:
        rank_zero_warn(f"{problem}; going on without the checkpoint {path}")
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(content: dict[str, Any], path: Path, temporary: Path) -> str:
    """Why it failed, the same on all processes, or an empty string."""
    first, pieces = dist.get_rank() == 0, {}

    def take(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        pieces[name] = leaf
        return {NAME: name, "shape": list(leaf.shape), "dtype": leaf.dtype}

    rest = walk(content, take)
    problem = _agreed(lambda: _fresh(temporary) if first else None)
    if problem:
        return problem
    try:
        # Writing fails on all processes together.
        save_pieces(pieces, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    except CheckpointException as error:
        return _reason(next(iter(error.failures.values()))[0])
    own = {}

    def finish_own() -> None:
        if first:
            torch.save(rest, temporary / REST)
        names = [*temporary.glob(f"shard-{dist.get_rank() + 1:05d}-{PIECES}")]
        for file in [*names, *([temporary / REST] if first else [])]:
            sync(file)
            own[file.name] = {"size": file.stat().st_size, "crc32": crc32(file)}

    problem = _agreed(finish_own)
    if problem:
        return problem
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)

    def finish() -> None:
        files = {name: about for part in parts for name, about in part.items()}
        (temporary / INDEX).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n")
        sync(temporary / INDEX)
        sync(temporary)
        if path.exists():  # damaged, or the run would not have come back to before it
            remove(path)
        os.replace(temporary, path)
        sync(path.parent)

    return _agreed(lambda: finish() if first else None)


def _agreed(action: Callable[[], None]) -> str:
    """Run ``action``; the first process's problem that had one, on all of them, or an empty string."""
    problem = ""
    try:
        action()
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        problem = _reason(error)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, problem)
    return next((text for text in found if text), "")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot write {error.filename or 'a checkpoint'}: {error.strerror}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _fresh(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def remove(path: Path) -> None:
    """Delete a checkpoint, a folder's name first, so that no half of it is ever taken for one."""
    if not path.is_dir():
        return path.unlink(missing_ok=True)
    trash = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(trash, ignore_errors=True)
    os.replace(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def crc32(path: Path) -> int:
    """Of a file's content."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def check(path: Path) -> None:
    """Read every file of the folder and compare it with the index.

    Raises:
        ValueError, OSError: for a folder that is damaged or no checkpoint.
    """
    index = json.loads((path / INDEX).read_text())
    if index.get("format") != FORMAT:
        raise ValueError(f"its format is {index.get('format')}, this version reads {FORMAT}")
    files: dict[str, dict[str, int]] = index["files"]
    for name, about in files.items():
        size = (path / name).stat().st_size
        if size != about["size"]:
            raise ValueError(f"{name} has {size} bytes in place of {about['size']}")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(crc32, [path / name for name in files])
        for (name, about), value in zip(files.items(), found, strict=True):
            if value != about["crc32"]:
                raise ValueError(f"the checksum of {name} is wrong")


def rest(path: Path) -> dict[str, Any]:
    """What the folder says without its cut tensors."""
    return torch.load(path / REST, map_location="cpu", weights_only=True)


def load(path: Path, *, mesh: DeviceMesh | None = None, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a folder, as it would be of a single file.

    Args:
        mesh: whose processes get their pieces, whatever the number of pieces in the folder, all calling
            this; without, the calling process gets whole tensors on the CPU.
        without: top-level keys that are left out, their tensors not read.
    """
    content = {key: value for key, value in rest(path).items() if key not in without}
    wanted: dict[str, Tensor] = {}

    def make(name: str, leaf: Any) -> Any:
        if not (isinstance(leaf, dict) and NAME in leaf):
            return leaf
        if mesh is None:
            wanted[leaf[NAME]] = torch.empty(leaf["shape"], dtype=leaf["dtype"])
        else:
            options = {"dtype": leaf["dtype"], "device_mesh": mesh, "placements": placements(mesh)}
            wanted[leaf[NAME]] = empty_pieces(leaf["shape"], **options)
        return wanted[leaf[NAME]]

    content = walk(content, make)
    if wanted:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what is asked for
            load_pieces(wanted, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=mesh is None)
    return content


def cut(content: dict[str, Any], model: Mapping[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    """``content`` of a single file, this process's pieces only of what is in pieces in ``model``.

    Args:
        model: the state of the module that is to be loaded.
    """
    names = {f"state_dict/{name}" for name, value in model.items() if isinstance(value, DTensor)}

    def piece(name: str, leaf: Any) -> Any:
        averaged = name.startswith(("ema/", "optimizer_states/"))
        if not isinstance(leaf, Tensor) or not (name in names or (averaged and leaf.ndim > 0)):
            return leaf
        return distribute_tensor(leaf, mesh, placements(mesh), src_data_rank=None)

    return walk(content, piece)


def placements(mesh: DeviceMesh) -> list[Placement]:
    """How fully_shard cuts: along the first dimension, over the last dimension of the mesh."""
    return [*[Replicate()] * (mesh.ndim - 1), Shard(0)]


def walk(content: Any, fill: Fill, name: str = "") -> Any:
    """``content``, nested dicts and lists, with ``fill(name, leaf)`` for every leaf; names join keys by /."""
    if isinstance(content, dict) and NAME not in content:
        return {key: walk(value, fill, f"{name}/{key}".lstrip("/")) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(walk(value, fill, f"{name}/{i}") for i, value in enumerate(content))
    return fill(name, content)
