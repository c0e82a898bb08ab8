"""Exports: a folder of config.json, model.safetensors and README.md. Loading never runs code from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmtt.errors import UserError, nearest
from fmtt.files import atomic_folder, left_aside
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.config import FORMAT, NETWORKS, build, check_config, read_config

__all__ = ["NETWORKS", "load", "save", "shipped"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
ASSETS = Path(__file__).parent.parent / "assets"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def shipped() -> list[str]:
    """Names of the exports that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{CONFIG}"))


def save(
    flow_map: NeuralFlowMap,
    path: str | Path,
    *,
    network: str,
    network_args: Mapping[str, Any],
    trained: Mapping[str, Any],
    metrics: Mapping[str, Any],
    card: str,
    kind: str = "flow_map",
    dtype: torch.dtype | None = None,
) -> None:
    """Write an export; the folder appears complete or not at all.

    Args:
        path: the folder; an export that is there already is replaced.
        network, network_args: the name in ``NETWORKS`` and the keyword arguments of its class, apart
            from the data's shape.
        trained, metrics: JSON objects, stored as they are.
        card: the text of README.md.
        kind: ``flow_map``, or ``velocity`` for a model trained on its diagonal only.
        dtype: to store floating-point weights in; their own if omitted.

    Raises:
        UserError: when :func:`load` would refuse the result, the folder holds something else, or the
            disk does not take it.
    """
    path = Path(path)
    config = {
        "format": FORMAT,
        "kind": kind,
        "network": {"name": network, "args": dict(network_args)},
        "interpolant": flow_map.interpolant.name,
        "prediction": flow_map.prediction,
        "data_shape": list(flow_map.data_shape),
        "bidirectional": flow_map.bidirectional,
        "trained": dict(trained),
        "metrics": dict(metrics),
    }
    text = json.dumps(config, indent=2) + "\n"
    check_config(json.loads(text), path / CONFIG)
    weights = {name: w.detach().cpu().contiguous() for name, w in flow_map.network.state_dict().items()}
    if dtype is not None:
        weights = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
    _check_weights(weights, build(config, path / CONFIG), path / WEIGHTS)
    if path.exists() and not (path / CONFIG).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not an export: choose another folder")
    with atomic_folder(path) as new:
        (new / CONFIG).write_text(text, encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors makes its files private


def load(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> NeuralFlowMap:
    """Load an export for inference: in eval mode, without gradients for the weights.

    Args:
        path: an export's folder, or the name of a shipped export where there is no such folder; or the
            folder of a text-to-image pipeline of diffusers, of which the flow map is loaded that was saved
            with it, or else the transformer.
        dtype: of the weights; if omitted float32, also where they are stored in half precision, or for a
            pipeline as stored.

    Returns:
        The flow map, with ``data_shape`` and the export's ``config``.

    Raises:
        UserError: when the folder is not an export that this version can read exactly.
    """
    folder = _find(Path(path))
    if (folder / "trained.safetensors").is_file():  # what was trained on top of a diffusers transformer
        from fmtt.models.diffusers.export import load as load_diffusers

        return load_diffusers(folder, device, dtype)
    if (folder / "model_index.json").is_file():  # a diffusers pipeline
        from fmtt.models.diffusers.export import of_pipeline

        return of_pipeline(folder, device, dtype)
    config = read_config(folder / CONFIG)
    flow_map = build(config, folder / CONFIG)
    weights = _read_weights(folder / WEIGHTS)
    _check_weights(weights, flow_map, folder / WEIGHTS)
    own = flow_map.network.state_dict()
    weights = {name: w.to(own[name].dtype) for name, w in weights.items()}
    flow_map.network.load_state_dict(weights, assign=True)
    flow_map.config = config
    try:
        flow_map.to(device=torch.device(device), dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot move {path} to device {str(device)!r}: {reason}") from error
    return flow_map.eval().requires_grad_(False)


def _find(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix in PICKLES:
        raise UserError(f"{path} is a pickle, which can run code: give an export's folder instead")
    if path.exists():
        raise UserError(f"{path} is a file: give the export's folder ({CONFIG}, {WEIGHTS})")
    names = shipped()
    if str(path) in names:
        return ASSETS / path
    if (old := left_aside(path)) is not None:
        raise UserError(
            f"{path} was being replaced when its writer was killed: export again, or mv {old} {path}"
        )
    known = f", shipped exports: {', '.join(names)}" if names else ""
    raise UserError(f"there is no export at {path}{known}{nearest(str(path), names)}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        pickles = sorted(p.name for p in path.parent.iterdir() if p.suffix in PICKLES)
        refused = f" ({pickles[0]} is a pickle, which can run code, and is not read)" if pickles else ""
        raise UserError(f"{path} is missing{refused}: re-export the model")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        # The ninth byte of a safetensors file opens its JSON header.
        if head[8:] != b"{" and (head.startswith(b"PK\x03\x04") or head.startswith(b"\x80")):
            raise UserError(f"{path} is a pickle, which can run code, not safetensors: re-export the model")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): copy the export again") from error


def _check_weights(weights: dict[str, Tensor], flow_map: NeuralFlowMap, path: Path) -> None:
    expected = flow_map.network.state_dict()
    missing, extra = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing:
        raise UserError(f"{path}: {_count(missing, 'tensor')} missing that config.json asks for")
    if extra:
        raise UserError(f"{path}: {_count(extra, 'tensor')} unknown to the network of config.json")
    for name, tensor in expected.items():
        found = weights[name]
        if found.shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(found.shape)}, config.json asks for {tuple(tensor.shape)}"
            )
        if found.is_floating_point() != tensor.is_floating_point():
            raise UserError(f"{path}: {name} is {found.dtype}, the network needs {tensor.dtype}")


def _count(names: set[str], noun: str) -> str:
    first = sorted(names)[0]
    return f"{noun} {first} is" if len(names) == 1 else f"{noun} {first} and {len(names) - 1} more are"
