"""``fmtt edit`` and ``fmtt prompts`` name a model that is no text-to-image pipeline, and write nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fmtt import png
from fmtt.__main__ import main
from fmtt.models.checkpoint import ASSETS

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.mark.parametrize("model", ["clock-map", "copy"])
@pytest.mark.parametrize("command", ["edit", "prompts"])
def test_an_export_of_another_kind(model: str, command: str, tmp_path: Path, capsys: Any, monkeypatch):
    monkeypatch.chdir(tmp_path)
    png.write("photo.png", torch.rand(3, 8, 8))
    Path("suite.jsonl").write_text(json.dumps({"prompt": "a cat", "tag": "x"}) + "\n")
    if model == "copy":
        shutil.copytree(ASSETS / "clock-map", model)
    words = {
        "edit": ["photo.png", "--prompt", "a", "--reward", "brightness"],
        "prompts": ["suite.jsonl", "--method", "sample"],
    }[command]
    assert main([command, model, *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {model} is an export and no text-to-image pipeline")
    assert error.count("\n") == 1 and "hub cannot" not in error and not Path("out").exists()
