"""A pipeline's folder is replaced whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmtt.errors import UserError
from fmtt.models.diffusers.pretrained import load_flow_map
from fmtt.models.diffusers.student import Lora, student_of
from tests.models.diffusers.conftest import folder, quiet  # noqa: F401 (fixtures)
from train.export_pretrained import PIPELINE, write_export


def test_a_pipeline_that_fails_leaves_the_old_one(
    folder: Callable[[str], str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    lora = Lora(rank=2)
    student = student_of(load_flow_map(folder("flux"), height=8, width=8), lora=lora)
    args = {"pretrained": folder("flux"), "lora": lora._asdict(), "dtype": "float32"}
    about: dict[str, Any] = {"network_args": args, "kind": "flow_map"}
    options: dict[str, Any] = {"merged": False, "pipeline": True, "trained": {}, "metrics": {}}

    def write(name: str, card: str) -> None:
        write_export(student, tmp_path / name, about, card=card, **options)

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file exists and is not a pipeline"):
        write("file", "none")
    write("out", "first")
    real = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if source.name == "new" and target.name == "out":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(UserError, match="cannot write .*out: No space left"):
        write("out", "second")
    assert (tmp_path / "out" / "README.md").read_text() == "first" and (tmp_path / "out" / PIPELINE).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
