"""What a user gives wrongly is answered in one line that says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmtt.errors import UserError
from fmtt.models.diffusers.pretrained import left_out, load_flow_map, load_pipeline
from tests.models.diffusers.conftest import diffusers

Folder = Callable[[str], str]


def test_another_family(folder: Folder):
    with pytest.raises(UserError, match="holds a SD3Transformer2DModel, not family flux: set family to sd3"):
        load_flow_map(folder("sd3"), family="flux")
    with pytest.raises(
        UserError, match="family must be one of flux, sd3, sana, lumina2, sana_sprint, got 'fluks'; did you"
    ):
        load_flow_map(folder("sd3"), family="fluks")


def test_missing_and_pickled_weights(folder: Folder, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(folder("flux"), broken)
    weights = next((broken / "transformer").glob("*.safetensors"))
    weights.unlink()
    torch.save({}, broken / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"no transformer/\*.safetensors \(pickles are not read\)"):
        load_flow_map(str(broken))
    with pytest.raises(UserError, match="no transformer/\\*.safetensors"):
        load_pipeline(str(broken))
    weights.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_flow_map(str(broken))
    shutil.rmtree(broken / "transformer")
    with pytest.raises(UserError, match="has no transformer/config.json"):
        load_flow_map(str(broken))


def test_no_such_folder_or_repository(tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder"):
        load_flow_map(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="hub cannot be reached: run `hf download nobody/nothing`"):
        load_flow_map("nobody/nothing")


def test_sizes_that_do_not_fit(folder: Folder):
    with pytest.raises(UserError, match="height must be a multiple of 4 pixels, got 10"):
        load_flow_map(folder("flux"), height=10, width=8)
    assert load_flow_map(folder("sd3")).data_shape == (4, 8, 8)


def test_parts_left_out_are_looked_up_where_the_rest_is(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, object] = {}
    index = {"_class_name": "P", "vae": ["diffusers", "AutoencoderKL"], "text_encoder_3": [None, None]}

    def load_config(where: str, **own: object) -> dict[str, object]:
        seen.update(own)
        return index

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", load_config)
    assert left_out("a/b", {"revision": "r", "cache_dir": "c", "variant": "fp16"}) == {"text_encoder_3": None}
    assert seen == {"revision": "r", "cache_dir": "c"}
