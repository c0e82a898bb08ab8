"""Writing files and folders so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmtt.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well.

    Raises:
        UserError: when the folder cannot be written or the disk is full; an old file stays intact.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes the file private
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it takes the place of ``path`` when the block ends well.

    A folder cannot be renamed over one that holds something, so the old one is :func:`set_aside` for a
    moment. What is killed in that moment leaves it there, and the next write to ``path`` first puts it back.

    Raises:
        UserError: when the folder cannot be written or the disk is full; an old folder stays as it is.
    """
    path = Path(path)
    try:
        place, old = path.resolve(), set_aside(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not place.exists():
            os.replace(old, place)
        shutil.rmtree(old, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    try:
        new = scratch / "new"  # mkdtemp makes its folders private
        new.mkdir()
        yield new
        for written in (*new.rglob("*"), new):
            sync(written)
        if place.exists():
            os.replace(place, old)
        try:
            os.replace(new, place)
        except BaseException:
            if old.exists():
                os.replace(old, place)
            raise
        sync(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def set_aside(path: str | Path) -> Path:
    """Where :func:`atomic_folder` keeps the old ``path`` while the new one takes its place."""
    place = Path(path).resolve()
    return place.with_name(f".{place.name}.old")


def left_aside(path: str | Path) -> Path | None:
    """The old ``path`` where a write that was killed left it set aside, and none has put it back since."""
    try:
        old = set_aside(path)
        return old if old.is_dir() and not Path(path).exists() else None
    except (OSError, ValueError):  # no such name can be
        return None


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system syncs folders
            raise
    finally:
        os.close(handle)


def check_writable(folder: Path, key: str) -> None:
    """Try to write in ``folder``, or where it is to be made, before any work is done. Nothing is left behind:
    what is written later makes the folder.

    Raises:
        UserError: naming ``key``, where the folder came from.
    """
    try:
        tempfile.TemporaryFile(dir=_nearest_there(folder)).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {key} {folder}: {reason}; choose another folder") from error


def make_writable(folder: Path, key: str) -> None:
    """:func:`check_writable`, and make the folder where it is not there.

    Raises:
        UserError: naming ``key``, where the folder came from.
    """
    check_writable(folder, key)
    folder.mkdir(parents=True, exist_ok=True)


def _nearest_there(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if path == path.parent:  # the working folder was deleted
            raise
        return _nearest_there(path.parent)
    return path


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
