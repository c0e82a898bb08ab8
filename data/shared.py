"""Conditions that all samples of a set share, beside its shards: those of the negative prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from data.procedural import PROCEDURAL
from data.store import Folder, open_store
from fmtt.errors import UserError
from fmtt.files import atomic_write

SHARED_NAME = "shared.safetensors"


def write_shared(out: str | Path, cond: Mapping[str, Tensor]) -> None:
    """Write conditions (1, ...) by name into the folder of a set."""
    ready = {name: value.detach().cpu().contiguous() for name, value in cond.items()}
    with atomic_write(Path(out) / SHARED_NAME) as temporary:
        temporary.write_bytes(safetensors.torch.save(ready))


def read_shared(source: str | Path) -> dict[str, Tensor]:
    """Conditions (1, ...) that all samples of a source share; empty where it has none.

    Args:
        source: as for :func:`data.store.open_store`, or the name of a computed set.

    Raises:
        UserError: when the file is damaged, or the source does not answer.
    """
    if isinstance(source, str) and source in PROCEDURAL:
        return {}
    store = open_store(source)
    try:
        return safetensors.torch.load(store.read(SHARED_NAME))
    except SafetensorError as error:
        raise UserError(f"{store.where(SHARED_NAME)} is damaged ({error}); encode the set again") from error
    except OSError as error:
        if isinstance(store, Folder) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{store.where(SHARED_NAME)} cannot be read: {error.strerror}") from error
        return {}
