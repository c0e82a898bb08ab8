"""What is written is what is loaded; public two-time adapters are what plain modules compute."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fmtt
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers import export
from fmtt.models.diffusers.pretrained import FAMILIES, load_flow_map
from fmtt.models.diffusers.student import Lora, student_of, trained_parameters
from fmtt.models.diffusers.two_time_lora import load_two_time_lora
from tests.models.diffusers.conftest import WIDTH, conditions, diffusers

Folder = Callable[[str], str]


def trained(student: NeuralFlowMap) -> NeuralFlowMap:
    with torch.no_grad():
        for weight in trained_parameters(student).values():
            weight.add_(0.1 * torch.randn_like(weight))
    return student


@pytest.mark.parametrize("lora", [Lora(rank=2, alpha=3.0), None], ids=["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_is_loaded_as_it_was(name: str, lora: Lora | None, folder: Folder, tmp_path: Path):
    student = trained(student_of(load_flow_map(folder(name), height=8, width=12), lora=lora))
    export.save(student, tmp_path / "map", pretrained=folder(name), lora=lora, metrics={"steps": 3})
    again = fmtt.load(tmp_path / "map")
    x, cond = torch.randn(2, *student.data_shape), conditions(name, 2)
    student.requires_grad_(False)  # kernels of weights that want gradients differ in the last bit
    assert torch.equal(again(x, 0.2, 0.9, cond), student(x, 0.2, 0.9, cond))
    assert again.data_shape == (4, 4, 6) and again.config["metrics"] == {"steps": 3}
    assert not any(p.requires_grad for p in again.parameters())
    files = {path.name for path in (tmp_path / "map").rglob("*") if path.is_file()}
    assert not any(file.endswith((".bin", ".pt")) for file in files)
    assert ("diffusion_pytorch_model.safetensors" in files) is (lora is None)


def test_exports_that_cannot_be_honoured(folder: Folder, tmp_path: Path):
    lora = Lora(rank=2)
    student = student_of(load_flow_map(folder("flux"), height=8, width=8), lora=lora)
    with pytest.raises(UserError, match="lora must be what the student was made with"):
        export.save(student, tmp_path / "map", pretrained=folder("flux"))
    export.save(student, tmp_path / "map", pretrained=str(tmp_path / "gone"), lora=lora)
    with pytest.raises(UserError, match="the base model of .*: there is no folder"):
        fmtt.load(tmp_path / "map")
    assert export.load(tmp_path / "map", pretrained=folder("flux")).data_shape == (4, 4, 4)
    with pytest.raises(UserError, match="holds a SD3Transformer2DModel, not family flux"):
        export.load(tmp_path / "map", pretrained=folder("sd3"))
    config = json.loads((tmp_path / "map" / "config.json").read_text())
    config["network"]["args"]["lora"]["rank"] = 3
    (tmp_path / "map" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="lora_A.default.weight has shape"):
        export.load(tmp_path / "map", pretrained=folder("flux"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(UserError, match="exists and is not an export"):
        export.save(student, tmp_path / "other", pretrained=folder("flux"), lora=lora)


def test_an_export_that_fails_leaves_the_old_one(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options: dict[str, Any] = {"pretrained": folder("flux"), "lora": Lora(rank=2)}
    student = student_of(load_flow_map(folder("flux"), height=8, width=8), lora=options["lora"])
    export.save(student, tmp_path / "map", **options)
    before, real = (tmp_path / "map" / "trained.safetensors").read_bytes(), os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(UserError, match="cannot write .*map: No space left"):
        export.save(trained(student), tmp_path / "map", **options)
    assert (tmp_path / "map" / "trained.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


class Both(torch.nn.Module):
    """The public network's embedding, by hand: both times embedded apart and averaged."""

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module, later: torch.Tensor) -> None:
        super().__init__()
        self.first, self.second, self.later = first, second, later

    def forward(self, timestep: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return 0.5 * (self.first(timestep, *rest) + self.second(self.later, *rest))


def test_a_public_two_time_adapter_is_what_plain_modules_compute(folder: Folder, tmp_path: Path):
    base = load_flow_map(folder("flux"), height=8, width=8)
    plain = diffusers.FluxTransformer2DModel.from_pretrained(folder("flux"), subfolder="transformer")
    second = copy.deepcopy(plain.time_text_embed)
    weights = {}
    with torch.no_grad():
        for key, value in second.named_parameters():
            value.add_(0.2 * torch.randn_like(value))
            weights[f"time_text_embed_2.{key}"] = value.detach().clone()
        for layer in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"):
            target = plain.get_submodule(layer)
            A, B = torch.randn(3, target.in_features), torch.randn(target.out_features, 3)
            weights |= {f"transformer.{layer}.lora_A.weight": A, f"transformer.{layer}.lora_B.weight": B}
            target.weight.add_(6 / 3 * B @ A)
    save_file(weights, tmp_path / "lora.safetensors")
    flow_map, lora = load_two_time_lora(base, tmp_path / "lora.safetensors", alpha=6)
    assert lora.rank == 3 and len(lora.targets) == 2

    x, cond = torch.randn(2, 4, 4, 4), conditions("flux", 2)
    s, t = torch.tensor([0.1, 0.6]), torch.tensor([0.4, 1.0])
    plain.time_text_embed = Both(plain.time_text_embed, second, 1000 * (1 - t))
    with torch.no_grad():
        packed = plain(
            hidden_states=diffusers.FluxPipeline._pack_latents(x, 2, 4, 4, 4),
            timestep=1 - s,
            guidance=cond["guidance_scale"],
            pooled_projections=cond["pooled_prompt_embeds"],
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=torch.zeros(6, 3),
            img_ids=diffusers.FluxPipeline._prepare_latent_image_ids(2, 2, 2, "cpu", torch.float32),
        ).sample
        velocity = diffusers.FluxPipeline._unpack_latents(packed, 8, 8, 2)
    torch.testing.assert_close(flow_map.average_velocity(x, s, t, cond), -velocity, rtol=0, atol=1e-5)

    export.save(flow_map, tmp_path / "map", pretrained=folder("flux"), lora=lora)
    again = fmtt.load(tmp_path / "map")
    assert torch.equal(again(x, s, t, cond), flow_map(x, s, t, cond))


def test_files_that_are_no_such_adapter(folder: Folder, tmp_path: Path):
    file = tmp_path / "lora.safetensors"

    def refused(weights: dict[str, torch.Tensor], message: str) -> None:
        save_file(weights, file)
        with pytest.raises(UserError, match=message):
            load_two_time_lora(load_flow_map(folder("flux"), height=8, width=8), file)

    A, B = torch.zeros(2, WIDTH), torch.zeros(WIDTH, 2)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    refused({"something": A}, "something is neither an adapter's weight")
    refused({f"{layer}.lora_A.weight": A}, "has one side only")
    refused({f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B}, "of the second time is missing")
    file.write_bytes(b"pickle")
    with pytest.raises(UserError, match="no safetensors file"):
        load_two_time_lora(load_flow_map(folder("flux"), height=8, width=8), file)
