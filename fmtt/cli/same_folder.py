"""What a folder was filled with, so that a command that continues in it continues the same thing."""

from __future__ import annotations

import json
import zlib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmtt.cli.output import plain
from fmtt.errors import UserError
from fmtt.models import checkpoint

ENDS = 1 << 20
"""Bytes read at either end of a file: of weights that were trained on, every one differs."""


def fingerprint(name: str | Path | None) -> str | None:
    """A checksum of names, sizes and ends of the files of a folder, a file, or a shipped export by its name.

    None for what is not on this disk, such as a hub's id.
    """
    if name is None:
        return None
    path = Path(name)
    if not path.exists() and str(name) in checkpoint.shipped():
        path = checkpoint.ASSETS / path
    if not path.exists():
        return None
    value = 0
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            size = file.stat().st_size
            value = zlib.crc32(f"{file.relative_to(path)} {size}\n".encode(), value)
            with open(file, "rb") as stream:
                value = zlib.crc32(stream.read(ENDS), value)
                stream.seek(max(0, size - ENDS))
                value = zlib.crc32(stream.read(ENDS), value)
    return f"{value:08x}"


def settings(args: Namespace, names: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """The arguments ``names``, and the content of those arguments that name ``files``."""
    found = {key: plain(getattr(args, key)) for key in names}
    return found | {f"content of {key}": fingerprint(getattr(args, key)) for key in files}


def stored(path: Path, wanted: dict[str, Any], out: Path, holds: str) -> dict[str, Any]:
    """The JSON object in ``path``, whose "settings" are the ``wanted`` ones.

    Args:
        out: the folder, and ``holds``: what is in it, for the message.

    Raises:
        UserError: when it holds something else, naming the first setting that differs, or cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        different = [key for key in wanted if content["settings"].get(key) != wanted[key]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --out") from error
    if different:
        key = different[0]
        raise UserError(
            f"--out {out} holds {holds} with {key}={content['settings'].get(key)}, now it is {wanted[key]}: "
            "give another --out, or the same settings to continue"
        )
    return content
