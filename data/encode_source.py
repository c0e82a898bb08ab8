"""What is to be encoded: image-caption pairs in webdataset shards, or captions alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fmtt.errors import UserError

IMAGES, CAPTIONS = ("jpg", "jpeg", "png", "webp"), ("txt", "json")
CAPTION_KEYS = ("caption", "prompt", "text")
"""Where a .json member may hold the caption."""


class Damaged(Exception):
    """A sample that cannot be read: where, and why."""


class Captioned(Protocol):
    """Captions by number, with or without images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where the sample comes from, for messages and records."""
        ...

    def caption(self, index: int) -> str:
        """Its caption; raises Damaged."""
        ...

    def fingerprint(self) -> list[object]:
        """What tells this source from another, as JSON holds it."""
        ...


class CaptionFile:
    """A text file with a caption per line.

    Raises:
        UserError: when it cannot be read or holds no caption.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--captions {path} cannot be read as text: {error}") from error
        self.lines = [line.strip() for line in lines if line.strip()]
        if not self.lines:
            raise UserError(f"--captions {path} holds no caption; write one per line")

    def __len__(self) -> int:
        return len(self.lines)

    def name(self, index: int) -> str:
        return f"{self.path.name}, caption {index}"

    def caption(self, index: int) -> str:
        return self.lines[index]

    def fingerprint(self) -> list[object]:
        return [*self.lines]


class _Entry(NamedTuple):
    """Offset and size of an image and of its caption in a shard."""

    shard: int
    key: str
    image: tuple[int, int]
    text: tuple[int, int]
    kind: str


class PairShards:
    """Image-caption pairs: members KEY.jpg (jpeg, png, webp) and KEY.txt or KEY.json of tar files.

    Only the archives' headers are read, until a sample is asked for.

    Args:
        folder: with the shards, which are taken in the order of their names; or one shard.
        progress: called with the number of pairs found so far.

    Raises:
        UserError: when there are no shards, or no pairs in them.
    """

    def __init__(self, folder: Path, progress: Callable[[int], None] | None = None) -> None:
        folder = folder.expanduser()
        self.shards = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]
        if not self.shards or not self.shards[0].is_file():
            raise UserError(f"{folder} is no folder of webdataset shards (*.tar), nor one of them")
        self.entries: list[_Entry] = []
        self.incomplete = 0
        """Samples that lack an image or a caption, and are left out."""
        for number, path in enumerate(self.shards):
            self._scan(number, path)
            if progress is not None:
                progress(len(self.entries))
        if not self.entries:
            wanted = f"KEY.{'|'.join(IMAGES)} with KEY.{'|'.join(CAPTIONS)}"
            raise UserError(f"{folder}: the shards hold no image-caption pairs ({wanted})")

    def _scan(self, number: int, path: Path) -> None:
        key, found = "", {}
        try:
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    name, _, kind = member.name.partition(".")
                    if name != key:
                        self._add(number, key, found)
                        key, found = name, {}
                    if member.isfile():
                        found[kind.lower()] = (member.offset_data, member.size)
                    tar.members.clear()  # type: ignore[attr-defined]  # else every header is kept
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{path} is no uncompressed tar file that can be read ({error})") from error
        self._add(number, key, found)

    def _add(self, number: int, key: str, found: dict[str, tuple[int, int]]) -> None:
        image = next((found[kind] for kind in IMAGES if kind in found), None)
        kind = next((kind for kind in CAPTIONS if kind in found), None)
        if image is not None and kind is not None:
            self.entries.append(_Entry(number, key, image, found[kind], kind))
        elif found:
            self.incomplete += 1

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        entry = self.entries[index]
        return f"{self.shards[entry.shard].name}/{entry.key}"

    def caption(self, index: int) -> str:
        entry = self.entries[index]
        try:
            text = self._read(entry, entry.text).decode()
            return text.strip() if entry.kind == "txt" else _caption_of(text)
        except (ValueError, OSError) as error:
            raise Damaged(f"{self.name(index)}: no caption ({error})") from error

    def image(self, index: int, height: int, width: int) -> Tensor:
        """(3, height, width) in [0, 1]: scaled to cover that size, and cut about the centre.

        Raises:
            Damaged: when the image cannot be decoded.
        """
        from PIL import Image, ImageOps

        entry = self.entries[index]
        try:
            with Image.open(io.BytesIO(self._read(entry, entry.image))) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Damaged(f"{self.name(index)}: no readable image ({error})") from error
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255

    def _read(self, entry: _Entry, where: tuple[int, int]) -> bytes:
        with open(self.shards[entry.shard], "rb") as file:
            file.seek(where[0])
            content = file.read(where[1])
        if len(content) < where[1]:
            raise OSError("the shard ends before it")
        return content

    def fingerprint(self) -> list[object]:
        return [[path.name, path.stat().st_size] for path in self.shards]


def _caption_of(text: str) -> str:
    content = json.loads(text)
    found = [content[key] for key in CAPTION_KEYS if isinstance(content, dict) and key in content]
    if not found or not isinstance(found[0], str):
        raise ValueError(f"its .json has no text under {', '.join(CAPTION_KEYS)}")
    return found[0].strip()


def replacements(start: int, total: int, most: int) -> Sequence[int]:
    """The samples that may stand in for a damaged one, the nearest following first."""
    return [(start + k) % total for k in range(1, min(most, total - 1) + 1)]
