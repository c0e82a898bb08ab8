"""Exports: what is written is what is read, and everything else is refused in one clear line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmtt.errors import UserError
from fmtt.files import set_aside
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.models import checkpoint
from fmtt.models.checkpoint import NETWORKS, load, save
from tests.models.test_networks import SMALL

MLP = {"width": 8, "depth": 1}
NAMED = SMALL | {"mlp": ((2,), MLP)}


def build(name: str = "mlp", **kwargs: Any) -> NeuralFlowMap:
    shape, args = NAMED[name]
    network = NETWORKS[name](shape, **args)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    path = Trigonometric() if name == "dit" else Linear()
    return NeuralFlowMap(network, path, shape, **kwargs)


def write(flow_map: NeuralFlowMap, path: Path, name: str = "mlp", **kwargs: Any) -> None:
    args = NAMED[name][1]
    about = {"trained": {"steps": 3}, "metrics": {"loss": 0.5}, "card": "# A map\n", "network_args": args}
    save(flow_map, path, network=name, **{**about, **kwargs})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write(build(), tmp_path / "export")
    return tmp_path / "export"


def edit(export: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((export / "config.json").read_text())
    change(config)
    (export / "config.json").write_text(json.dumps(config))


def edit_weights(export: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = {key: value.clone() for key, value in load_file(export / "model.safetensors").items()}
    change(weights)
    save_file(weights, export / "model.safetensors")


def refusal(path: Path | str, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"prediction": "endpoint", "bidirectional": True}])
def test_what_is_read_is_what_was_written(tmp_path: Path, name: str, options: dict[str, Any]):
    flow_map = build(name, **options)
    write(flow_map, tmp_path / "deep" / "export", name)
    again = load(tmp_path / "deep" / "export")
    x, s, t = torch.randn(4, *flow_map.data_shape), torch.rand(4) / 2, 0.5 + torch.rand(4) / 2
    assert torch.equal(again(x, s, t), flow_map(x, s, t))
    assert torch.equal(again.velocity(x, s), flow_map.velocity(x, s))
    assert type(again.interpolant) is type(flow_map.interpolant)
    assert again.data_shape == flow_map.data_shape and again.bidirectional == flow_map.bidirectional
    assert again.config["trained"] == {"steps": 3} and again.config["metrics"] == {"loss": 0.5}
    assert not again.training and not any(weight.requires_grad for weight in again.parameters())


def test_folder_holds_three_readable_files_and_nothing_is_left_beside_it(export: Path):
    assert sorted(p.name for p in export.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in export.parent.iterdir()] == ["export"]
    config = json.loads((export / "config.json").read_text())
    assert list(config) == [
        *("format", "kind", "network", "interpolant", "prediction"),
        *("data_shape", "bidirectional", "trained", "metrics"),
    ]
    assert config["format"] == 1 and config["kind"] == "flow_map"
    assert config["network"] == {"name": "mlp", "args": MLP}
    assert (export / "README.md").read_text() == "# A map\n"
    modes = {(export / name).stat().st_mode for name in ("config.json", "model.safetensors", "README.md")}
    assert len(modes) == 1


def test_dtype_and_kind(tmp_path: Path):
    write(build(), tmp_path / "export", kind="velocity")
    assert load(tmp_path / "export").config["kind"] == "velocity"
    wide = load(tmp_path / "export", dtype=torch.float64)
    assert all(weight.dtype == torch.float64 for weight in wide.parameters())


def test_an_export_is_replaced_and_anything_else_is_not(export: Path, tmp_path: Path):
    second = build()
    write(second, export)
    x = torch.randn(3, 2)
    assert torch.equal(load(export)(x, 0.0, 1.0), second(x, 0.0, 1.0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_text("woof")
    with pytest.raises(UserError, match="not an export"):
        write(second, tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    write(second, tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "export", "photos"]


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_failed_save_leaves_the_old_export(export: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    before = {p.name: p.read_bytes() for p in export.iterdir()}
    real = os.replace

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def refuse_new(source: Path, target: Path) -> None:
        return full() if Path(source).name == "new" else real(source, target)

    if moment == "write":
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:
        monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(UserError, match="No space left"):
        write(build(), export)
    assert {p.name: p.read_bytes() for p in export.iterdir()} == before
    assert [p.name for p in export.parent.iterdir()] == ["export"]


def test_what_load_would_refuse_is_not_written(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'flow_map'"):
        write(build(), tmp_path / "export", kind="flowmap")
    with pytest.raises(UserError, match="did you mean 'width'"):
        write(build(), tmp_path / "export", network_args={"widht": 8})
    with pytest.raises(UserError, match="has shape"):
        write(build(), tmp_path / "export", network_args={"width": 16, "depth": 1})
    assert not list(tmp_path.iterdir())


def test_shipped_exports_are_found_by_name(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path / "assets")
    shutil.copytree(export, tmp_path / "assets" / "clock-map")
    assert checkpoint.shipped() == ["clock-map"]
    assert load("clock-map").data_shape == (2,)
    message = refusal("clok-map")
    assert "no export at clok-map" in message and "did you mean 'clock-map'?" in message


class TestRefusals:
    def test_missing_folder_and_files(self, export: Path, tmp_path: Path):
        assert "there is no export at" in refusal(tmp_path / "nowhere")
        (export / "model.safetensors").rename(export / "other")
        assert "model.safetensors is missing" in refusal(export)
        (export / "config.json").unlink()
        assert "config.json is missing" in refusal(export)

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
    def test_pickles(self, export: Path, tmp_path: Path, suffix: str):
        file = tmp_path / f"model{suffix}"
        torch.save({"weight": torch.zeros(2)}, file)
        assert "is a pickle" in refusal(file)
        assert "is a pickle" in refusal(tmp_path / f"absent{suffix}")
        (export / "model.safetensors").unlink()
        shutil.copy(file, export)
        assert f"model{suffix} is a pickle" in refusal(export)

    @pytest.mark.parametrize("protocol", ["zip", 0, 2, 4, 5])
    def test_a_pickle_named_safetensors_is_not_run(self, export: Path, tmp_path: Path, protocol: Any):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        target = export / "model.safetensors"
        if protocol == "zip":
            torch.save(Bomb(), target)
        else:
            target.write_bytes(pickle.dumps(Bomb(), protocol))
        message = refusal(export)
        assert "is a pickle" in message or (protocol == 0 and "damaged" in message)
        assert not (tmp_path / "ran").exists()

    def test_a_single_file(self, export: Path):
        assert "give the export's folder" in refusal(export / "model.safetensors")
        os.replace(export, set_aside(export))
        assert f"export again, or mv {set_aside(export)}" in refusal(export)

    @pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.999])
    def test_truncated_weights(self, export: Path, keep: float):
        file = export / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
        assert "truncated or damaged" in refusal(export)

    @pytest.mark.parametrize(
        "text", ["", "{", '{"format": 1,}', "[1, 2]", "null", "\x00", "[" * 100_000], ids=range(7)
    )
    def test_malformed_json(self, export: Path, text: str):
        (export / "config.json").write_text(text)
        message = refusal(export)
        assert "not valid JSON" in message or "must hold a JSON object" in message

    def test_text_that_is_not_utf8(self, export: Path):
        (export / "config.json").write_bytes(b'{"format": "\xff"}')
        assert "cannot be read" in refusal(export)

    @pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
    def test_another_format_version(self, export: Path, version: Any):
        edit(export, lambda config: config.update(format=version))
        message = refusal(export)
        assert "format" in message and "this fmtt reads format 1" in message

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (
                lambda c: c["network"].update(name="ditt"),
                f"unknown network 'ditt', known: {', '.join(NETWORKS)}; did you",
            ),
            (lambda c: c.update(interpolant="liner"), "did you mean 'linear'?"),
            (lambda c: c.update(kind="flowmap"), "did you mean 'flow_map'?"),
            (lambda c: c.update(prediction="end"), "unknown prediction 'end', known: velocity, endpoint"),
            (lambda c: c.pop("interpolant"), "key 'interpolant' is missing"),
            (lambda c: c["network"].pop("args"), "key 'network.args' is missing"),
            (lambda c: c.update(colour="red"), "unknown key 'colour'"),
            (lambda c: c.update(data_shap=[2]), "unknown key 'data_shap'; did you mean 'data_shape'?"),
            (lambda c: c["network"].update(module="os"), "unknown key 'network.module'"),
            (
                lambda c: c["network"]["args"].update(widht=8),
                "'network.args.widht'; did you mean 'width'?",
            ),
            (lambda c: c["network"]["args"].update(data_shape=[2]), "unknown key 'network.args.data_shape'"),
            (lambda c: c["network"]["args"].update(width="8"), "network.args.width must be like 128"),
            (lambda c: c["network"]["args"].update(depth=True), "network.args.depth must be like 3"),
            (lambda c: c["network"]["args"].update(width=-1), "mlp cannot be built"),
            (lambda c: c["network"].update(args=[]), "network must be"),
            (lambda c: c.update(network="mlp"), "network must be an object"),
            (lambda c: c.update(bidirectional="no"), "bidirectional must be true or false"),
            (lambda c: c.update(data_shape=[]), "data_shape must be a list of positive integers"),
            (lambda c: c.update(data_shape=[2.0]), "data_shape must be a list of positive integers"),
            (lambda c: c.update(data_shape=2), "data_shape must be a list"),
            (lambda c: c.update(data_shape=[3]), "has shape"),
            (lambda c: c["network"].update(name="dit", args={}), "dit cannot be built"),
            (lambda c: c["network"]["args"].update(depth=2), "and 5 more are missing"),
        ],
    )
    def test_config(self, export: Path, change: Callable[[dict[str, Any]], Any], expected: str):
        edit(export, change)
        assert expected in refusal(export)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda w: w.pop("embed.bias"), "tensor embed.bias is missing"),
            (lambda w: w.update(extra=torch.zeros(1)), "tensor extra is unknown"),
            (lambda w: w.update({"embed.bias": torch.zeros(9)}), "embed.bias has shape (9,)"),
            (lambda w: w.update({"embed.bias": torch.zeros(8).int()}), "embed.bias is torch.int32"),
        ],
    )
    def test_weights(self, export: Path, change: Callable[[dict[str, Any]], Any], expected: str):
        edit_weights(export, change)
        assert expected in refusal(export)

    @pytest.mark.parametrize("device", ["cuda:99", "abacus"])
    def test_device(self, export: Path, device: str):
        assert f"to device '{device}'" in refusal(export, device=device)
