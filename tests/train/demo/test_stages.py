"""Finished stages are not done again, interrupted ones are, and changed inputs start over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train.demo.stages import Stages, fingerprint


def test_a_finished_stage_is_reused_and_a_changed_one_is_redone(tmp_path: Path) -> None:
    calls: list[str] = []

    def work() -> dict[str, Any]:
        calls.append("work")
        (tmp_path / "a" / "file").write_text(str(len(calls)))
        return {"n": len(calls)}

    assert Stages(tmp_path).run("a", "title", "one", work) == {"n": 1}
    assert Stages(tmp_path).run("a", "title", "one", work) == {"n": 1}
    assert calls == ["work"]
    assert Stages(tmp_path).run("a", "title", "two", work) == {"n": 2}
    assert (tmp_path / "a" / "file").read_text() == "2"


@pytest.mark.parametrize("resumable", [True, False])
def test_an_interrupted_stage_starts_clean_unless_it_can_continue(tmp_path: Path, resumable: bool) -> None:
    def interrupted() -> dict[str, Any]:
        (tmp_path / "a" / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("a", "title", "one", interrupted, resumable=resumable)
    seen = []
    Stages(tmp_path).run(
        "a",
        "title",
        "one",
        lambda: seen.append((tmp_path / "a" / "half").exists()) or {},
        resumable=resumable,
    )
    assert seen == [resumable]


def test_a_resumable_stage_of_other_inputs_starts_clean(tmp_path: Path) -> None:
    def interrupted() -> dict[str, Any]:
        (tmp_path / "a" / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("a", "title", "one", interrupted, resumable=True)
    Stages(tmp_path).run("a", "title", "two", dict, resumable=True)
    assert not (tmp_path / "a" / "half").exists()


def test_a_stage_whose_folder_was_deleted_or_whose_stamp_is_damaged_is_redone(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {}

    Stages(tmp_path).run("a", "title", "one", work)
    (tmp_path / "a").rmdir()
    Stages(tmp_path).run("a", "title", "one", work)
    (tmp_path / ".stages" / "a.json").write_text("{")
    Stages(tmp_path).run("a", "title", "one", work)
    assert len(calls) == 3


def test_a_stage_whose_product_was_deleted_is_redone(tmp_path: Path) -> None:
    product = tmp_path / "page.html"

    def work() -> dict[str, Any]:
        product.write_text("page")
        return {}

    Stages(tmp_path).run("a", "title", "one", work, product=product)
    product.unlink()
    Stages(tmp_path).run("a", "title", "one", work, product=product)
    assert product.is_file()


def test_a_folder_that_is_half_deleted_does_not_count_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stages(tmp_path).run("a", "title", "one", lambda: {"n": 1})

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.demo.stages.shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Stages(tmp_path).run("a", "title", "two", dict)
    assert Stages(tmp_path).run("a", "title", "one", lambda: {"n": 2}) == {"n": 2}


def test_fingerprints_follow_settings_and_file_contents(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("1")
    first = fingerprint({"a": 1}, file)
    assert fingerprint({"a": 1}, file) == first
    assert fingerprint({"a": 2}, file) != first
    file.write_text("2")
    assert fingerprint({"a": 1}, file) != first
