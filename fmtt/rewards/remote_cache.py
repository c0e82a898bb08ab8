"""Answers of a remote judge on disk: one small file each, so that none is ever paid for twice.

Every file appears complete or not at all, and several processes may share a folder, on network disks too.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.files import check_writable, write_json


def key_of(image: Tensor, *question: object) -> str:
    """The key of an image (3, H, W), uint8, and of everything that decides the answer to it."""
    digest = hashlib.sha256(json.dumps([list(image.shape), *question]).encode())
    digest.update(image.to(torch.uint8).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Cache:
    """Scores by key, in memory and, if a folder is given, on disk.

    Args:
        folder: where the answers are kept; "" for memory alone.

    Raises:
        UserError: when the folder cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser() if folder else None
        self._known: dict[str, float] = {}
        if self.folder is not None:
            check_writable(self.folder, "cache")

    def get(self, key: str) -> float | None:
        """The score of a key, or None.

        Raises:
            UserError: when its file holds no score.
        """
        if key not in self._known and self.folder is not None:
            path = self._path(key)
            try:
                score = json.loads(path.read_text(encoding="utf-8"))["score"]
                self._known[key] = _finite(score)
            except FileNotFoundError:
                return None
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path} is not a cached score; delete it") from error
        return self._known.get(key)

    def put(self, key: str, score: float) -> None:
        """Keep a score at once."""
        self._known[key] = score
        if self.folder is not None:
            write_json(self._path(key), {"score": score})

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)
