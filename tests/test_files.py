"""Folders that are replaced whole, whatever happens at whatever moment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fmtt import files
from fmtt.errors import UserError
from fmtt.files import atomic_folder, check_writable, set_aside


def write(place: Path, text: str) -> None:
    with atomic_folder(place) as new:
        (new / "inner").mkdir()
        (new / "inner" / "file").write_text(text)


def read(place: Path) -> str:
    return (place / "inner" / "file").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of its own, which holds "first"."""
    write(tmp_path / "in" / "place", "first")
    return tmp_path / "in" / "place"


def killed(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """A write whose process ends between its two renames, so that nothing after them is run."""
    real, done = os.replace, []

    def replace(*names: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(names)
        real(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            write(place, "killed")


def test_a_folder_is_replaced_whole_and_nothing_stays_beside_it(place: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.name))
    write(place, "second")
    assert read(place) == "second" and [path.name for path in place.parent.iterdir()] == ["place"]
    assert synced == ["inner", "file", "new", "in"]
    assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777


def test_a_link_is_followed(place: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(place)
    write(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink() and read(place) == "second"


@pytest.mark.parametrize("moment", ["block", "rename"])
def test_a_failure_leaves_the_old_folder(place: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    real = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(UserError, match="cannot write .*/place: No space left"), atomic_folder(place):
        if moment == "block":
            raise OSError(28, "No space left on device")
    assert read(place) == "first" and [path.name for path in place.parent.iterdir()] == ["place"]


def test_what_a_kill_between_the_renames_leaves_is_put_back(place: Path, monkeypatch: pytest.MonkeyPatch):
    killed(monkeypatch, place)
    assert not place.exists() and read(set_aside(place)) == "first"
    with pytest.raises(UserError, match="another reason"), atomic_folder(place):
        raise UserError("another reason")
    assert read(place) == "first" and not set_aside(place).exists()
    killed(monkeypatch, place)
    write(place, "third")
    assert read(place) == "third" and not set_aside(place).exists()


def test_what_a_kill_after_the_renames_leaves_is_deleted(place: Path):
    shutil.copytree(place, set_aside(place))
    write(place, "second")
    assert read(place) == "second" and not set_aside(place).exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*; choose another folder"):
        write(tmp_path / "file" / "place", "first")


def test_a_check_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder in (Path("new/folder"), tmp_path / "new", tmp_path, Path()):
        check_writable(folder, "--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["file", "file/below", "file/far/below", "x" * 5000, "broken", "broken/below"]
)
def test_a_folder_that_cannot_be_written_is_one_line(name: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"cannot write to --out {tmp_path}/{name}: .*; choose another"):
        check_writable(tmp_path / name, "--out")
