"""Editing by words: ``fmtt edit`` with a tiny pipeline and a tiny vision-language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmtt import png
from fmtt.__main__ import main
from fmtt.cli.output import Output
from fmtt.models.diffusers.decoder import Decoder
from fmtt.rewards import build
from tests.models.diffusers.conftest import folder  # noqa: F401 (fixture)
from tests.rewards.learned.conftest import vlm  # noqa: F401 (fixture)

pytest.importorskip("fmtt.pipeline")
brightness = build("brightness", value_range=(0.0, 1.0))
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


def test_the_picture_and_its_mask_reach_the_model_whole(
    tmp_path: Path,
    folder: Callable[[str], str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    """Stripes finer than the model's pixels come in as their mean; the best edit is shown first."""
    stripes, right = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    stripes[..., ::2], right[..., 8:] = 1, 1
    png.write(tmp_path / "photo.png", stripes)
    png.write(tmp_path / "mask.png", right)
    seen: list[torch.Tensor] = []
    encode, show = Decoder.encode, Output.picture

    def encoded(self: Decoder, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return encode(self, images)

    def shown(self: Output, name: str, samples: torch.Tensor, values: tuple[float, float]) -> None:
        seen.append(samples)
        show(self, name, samples, values)

    monkeypatch.setattr(Decoder, "encode", encoded)
    monkeypatch.setattr(Output, "picture", shown)
    words = ["edit", folder("flux"), str(tmp_path / "photo.png"), "--reward", "brightness", *OPTIONS]
    words += ["--mask", str(tmp_path / "mask.png"), "--num-steps", "10"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    given, pictures = seen
    assert given.shape == (1, 3, 8, 8) and float((given - 0.5).abs().max()) < 0.1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "t=0.3." in summary["base_law"] and "not the model's law given the rest" in summary["base_law"]
    assert summary["base_law"].startswith("Exact at any number of steps")
    held = load_file(tmp_path / "out" / "samples.safetensors")
    weights, rewards = torch.softmax(held["log_weights"], 0), held["rewards"]
    assert float(rewards.std()) > 0 and float(weights.std()) > 0
    assert summary["mean_reward"] == pytest.approx(float((weights * rewards).sum()))
    assert torch.equal(pictures[1:], held["samples"][rewards.argsort(descending=True)])
    assert summary["reward_of_the_picture"] == pytest.approx(float(brightness(pictures[:1], None)), rel=1e-5)


def test_mistakes_are_one_line(photo: Path, tmp_path: Path, capsys: Any, folder: Callable[[str], str]):  # noqa: F811
    words = ["edit", folder("flux"), str(photo), "--reward", "brightness", *OPTIONS, "--out", str(tmp_path)]
    save_file({"x": torch.full((3, 8, 8), -1.0)}, tmp_path / "negative.safetensors")
    for change, message in (
        ({2: str(tmp_path / "none.png")}, "there is no picture"),
        ({4: "brightnes"}, "did you mean"),
        ({2: str(tmp_path / "negative.safetensors")}, "must hold grey or RGB values from 0 to 1"),
        ({1: str(tmp_path / "none")}, "there is no folder"),
    ):
        assert main([change.get(i, word) for i, word in enumerate(words)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
