"""Whatever is missing is one line with the remedy."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmtt.errors import UserError
from fmtt.rewards.learned import loading
from fmtt.rewards.learned.aesthetic import Aesthetic
from fmtt.rewards.learned.contrastive import ClipScore
from fmtt.rewards.learned.image_reward import ImageReward

transformers: Any = pytest.importorskip("transformers")


def refused(*args: Any, match: str, reward: Any = ClipScore) -> None:
    with pytest.raises(UserError, match=match) as caught:
        reward(*args)
    assert "\n" not in str(caught.value)


@pytest.fixture
def copy(clip: Path, tmp_path: Path) -> Path:
    """A copy of the CLIP folder to damage."""
    return Path(shutil.copytree(clip, tmp_path / "clip"))


def test_a_repository_that_cannot_be_reached() -> None:
    refused("a cat", "someone/some-clip", match="hub cannot be reached: run `hf download someone/some-clip`")


def test_a_gated_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub.errors import GatedRepoError

    def gated(*args: Any, **kwargs: Any) -> None:
        response = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co"))
        try:
            raise GatedRepoError("403", response=response)
        except GatedRepoError as error:
            raise OSError("You are trying to access a gated repo.\nMake sure ...") from error

    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", gated)
    refused(
        "a cat",
        "someone/gated",
        match="someone/gated is gated: accept its licence at https://.*hf auth login",
    )


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    refused("a cat", str(tmp_path / "nothing"), match="nothing is not a folder")


def test_pickled_weights(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused("a cat", str(copy), match="pickled weights only .*save_file")


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(
        "a cat", str(copy), match="1 weights are missing or of another shape, first visual_projection.weight"
    )


def test_damaged_weights(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("a cat", str(copy), match="the weights are damaged")


def test_a_missing_tokenizer_or_processor(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    refused("a cat", str(copy), match=str(copy))


def test_damaged_settings(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    refused("a cat", str(copy), match=str(copy))


def test_another_kind_of_model(copy: Path, blip: Path) -> None:
    refused("a cat", str(blip), match="does not hold a CLIPModel")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused("a cat", "x/y", match=r"need transformers: pip install 'fmtt\[rewards\]'")


def test_heads(clip: Path, tmp_path: Path) -> None:
    for name in ("head.pth", "head.safetensors"):
        torch.save({"weight": torch.zeros(1, 16)}, tmp_path / name)
        refused(str(tmp_path / name), str(clip), reward=Aesthetic, match="convert it once")
    refused(str(tmp_path / "none.safetensors"), str(clip), reward=Aesthetic, match="there is no file")
    for tensors, match in (
        ({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, r"shape \(1, 7\) where 16 features"),
        ({"weight": torch.zeros(2, 16), "bias": torch.zeros(2)}, "2 outputs instead of 1"),
        ({"weight": torch.zeros(1, 16)}, "lacks its weight or its bias"),
        ({"gain": torch.zeros(1)}, "'gain' is no weight"),
    ):
        save_file(tensors, tmp_path / "wrong.safetensors")
        refused(str(tmp_path / "wrong.safetensors"), str(clip), reward=Aesthetic, match=match)


def test_an_image_reward_folder_that_does_not_fit(blip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(blip, tmp_path / "blip"))
    refused("a cat", str(tmp_path / "none"), reward=ImageReward, match="loaded from a converted folder")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    refused(
        "a cat", str(copy), reward=ImageReward, match="does not fit its config.json: vision_model.encoder"
    )


def test_settings(clip: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
        ({"value_range": (1.0, 0.0)}, "low < high"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ]
    for settings, match in wrong:
        with pytest.raises(UserError, match=match):
            ClipScore("a cat", str(clip), **settings)


def test_pickles_are_known_by_name() -> None:
    assert {".bin", ".pt", ".pth"} <= set(loading.PICKLES)
