"""Editing by words: ``fmtt edit`` with a tiny pipeline and a tiny vision-language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fmtt import png
from fmtt.__main__ import main
from tests.models.diffusers.conftest import folder  # noqa: F401 (fixture)
from tests.rewards.learned.conftest import vlm  # noqa: F401 (fixture)

pytest.importorskip("fmtt.pipeline")
OPTIONS = ("--height", "8", "--width", "8", "--guidance-scale", "3", "--num-steps", "3", "--dtype", "float32")
OPTIONS += ("--num-particles", "3", "--device", "cpu", "--prompt", "a clock", "--strength", "0.7")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    png.write(tmp_path / "photo.png", torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return tmp_path / "photo.png"


def test_a_question_about_a_picture(
    photo: Path,
    tmp_path: Path,
    capsys: Any,
    folder: Callable[[str], str],  # noqa: F811
    vlm: Callable[[str], Path],  # noqa: F811
):
    pytest.importorskip("PIL")
    question = f"vlm:model={vlm('paligemma')},question=Does the clock read 3:47?"
    words = ["edit", folder("flux"), str(photo), "--reward", question, *OPTIONS]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "the given samples noised by the interpolant to t=0" in summary["base_law"]
    assert summary["best_reward"] >= summary["mean_reward"] and summary["cost"]["reward_calls"] > 3
    assert (tmp_path / "out" / "edited.png").is_file()
    samples = load_file(tmp_path / "out" / "samples.safetensors")
    assert samples["samples"].shape == (3, 3, 8, 8) and len(samples["log_weights"]) == 3
    assert "reward " in capsys.readouterr().out


def test_mistakes_are_one_line(photo: Path, tmp_path: Path, capsys: Any, folder: Callable[[str], str]):  # noqa: F811
    words = ["edit", folder("flux"), str(photo), "--reward", "brightness", *OPTIONS, "--out", str(tmp_path)]
    for change, message in (
        ({2: str(tmp_path / "none.png")}, "there is no picture"),
        ({4: "brightnes"}, "did you mean"),
        ({1: str(tmp_path / "none")}, "there is no folder"),
    ):
        assert main([change.get(i, word) for i, word in enumerate(words)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
