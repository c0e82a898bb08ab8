"""Exports of flow maps over a diffusers transformer: config.json, trained.safetensors and README.md.

A LoRA student's export holds what was trained and names the base model; that of a student trained in full,
or merged, holds the transformer too, in diffusers' own layout under ``transformer/``.
"""

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

from fmtt.errors import UserError
from fmtt.files import atomic_folder
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.config import FORMAT
from fmtt.models.diffusers.adapters import adapter_layers, is_adapter
from fmtt.models.diffusers.family import FEW_STEP, LatentTransformer
from fmtt.models.diffusers.pretrained import KNOWN, library, load_flow_map
from fmtt.models.diffusers.refusals import one_line
from fmtt.models.diffusers.student import Lora, add_lora, network_of

CONFIG, TRAINED, CARD, TRANSFORMER = "config.json", "trained.safetensors", "README.md", "transformer"
FLOW_MAP = "flow_map"
"""Folder of the flow map's own weights inside a pipeline's folder."""
ARGS = ("pretrained", "second_time", "own_guidance", "guidance", "few_step", "lora", "own_transformer")
"""Keys of ``network.args`` in config.json; all are required."""


def trained_tensors(network: LatentTransformer) -> dict[str, Tensor]:
    """What is the student's own beside the transformer: adapters, second time, guidance embedding."""
    return {
        name: value
        for name, value in network.state_dict().items()
        if is_adapter(name) or not name.startswith("transformer.")
    }


def save(
    flow_map: NeuralFlowMap,
    path: str | Path,
    *,
    pretrained: str,
    lora: Lora | None = None,
    own_transformer: bool | None = None,
    trained: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    card: str = "",
    kind: str = "flow_map",
) -> None:
    """Write an export; the folder appears complete or not at all.

    Args:
        path: the folder; an export that is there already is replaced.
        pretrained: folder or hub id of the pipeline that the flow map was made from.
        lora: what :func:`student_of` was given; the export refers to the base's weights then.
        own_transformer: whether the transformer is written too; if omitted, where there is no ``lora``.
        trained, metrics: JSON objects. card: the text of README.md.

    Raises:
        UserError: when ``lora`` does not agree with the flow map, or the folder cannot be written.
    """
    network, path = network_of(flow_map), Path(path)
    if network.adapters != (lora is not None):
        raise UserError(
            "lora must be what the student was made with" if network.adapters else "lora: no adapters"
        )
    own_transformer = lora is None if own_transformer is None else own_transformer
    config = _described(flow_map, pretrained, lora, own_transformer, kind)
    config |= {"trained": dict(trained or {}), "metrics": dict(metrics or {})}
    if path.exists() and not (path / TRAINED).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not an export: choose another folder")
    weights = {name: value.detach().cpu().contiguous() for name, value in trained_tensors(network).items()}
    weights = weights or {"none": torch.zeros(0)}
    with atomic_folder(path) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        save_file(weights, new / TRAINED, metadata={"format": "pt"})
        shutil.copymode(new / CONFIG, new / TRAINED)  # safetensors makes its files private
        if own_transformer:
            network.transformer.save_pretrained(new / TRANSFORMER, safe_serialization=True)


def _described(
    flow_map: NeuralFlowMap, pretrained: str, lora: Lora | None, own_transformer: bool, kind: str
) -> dict[str, Any]:
    """What config.json says of a flow map, with ``trained`` and ``metrics`` empty."""
    network = network_of(flow_map)
    args = {
        "pretrained": pretrained,
        "second_time": network.second_time_name,
        "own_guidance": network.own_guidance is not None,
        "guidance": network.guidance,
        "few_step": network.few_step,
        "lora": None if lora is None else {**lora._asdict(), "targets": list(lora.targets)},
        "own_transformer": own_transformer,
    }
    return {
        "format": FORMAT,
        "kind": kind,
        "network": {"name": network.names.family, "args": args},
        "interpolant": flow_map.interpolant.name,
        "prediction": flow_map.prediction,
        "data_shape": list(flow_map.data_shape),
        "bidirectional": flow_map.bidirectional,
        "trained": {},
        "metrics": {},
    }


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    pretrained: str | None = None,
) -> NeuralFlowMap:
    """Load an export for inference, frozen and in eval mode.

    Args:
        dtype: of the transformer; float32 if omitted. Adapters and the second time's embedding stay float32.
        pretrained: where the base model is now, if not where the export says.

    Raises:
        UserError: when the folder is not such an export, or the base model is not to be had.
    """
    path = Path(path)
    config = _read_config(path / CONFIG)
    args, family = config["network"]["args"], KNOWN[config["network"]["name"]]
    if args["own_transformer"]:
        transformer = _transformer_here(path, family, dtype)
    else:
        where = pretrained or base_of(path, config)
        try:
            base = load_flow_map(where, family=family.names.family, few_step=args["few_step"], dtype=dtype)
        except UserError as error:
            raise UserError(f"the base model of {path}: {error}") from error
        transformer = network_of(base).transformer
    return attach(path, transformer).to(device)


def of_pipeline(path: str | Path, device: torch.device | str, dtype: torch.dtype | None) -> NeuralFlowMap:
    """The flow map that a pipeline's folder was saved with, or else its transformer, with the ``config`` that
    an export of it would have.

    Raises:
        UserError: when files are missing, pickled, or of no family known here.
    """
    if (Path(path) / FLOW_MAP).is_dir():
        flow_map = load(Path(path) / FLOW_MAP, device, dtype)
        flow_map.config["network"]["args"]["pretrained"] = str(path)
        return flow_map
    flow_map = load_flow_map(str(path), dtype=dtype, device=device)
    kind = "flow_map" if network_of(flow_map).few_step else "velocity"
    flow_map.config = _described(flow_map, str(path), None, False, kind)
    return flow_map


def check_sampler(network: LatentTransformer) -> None:
    """Refuse what cannot stand in a pipeline's folder as the sampler that plain diffusers opens.

    Raises:
        UserError: for a model that only looks ahead, or unmerged adapters.
    """
    if network.few_step:
        raise UserError(FEW_STEP)
    if adapter_layers(network.transformer):
        raise UserError(
            "the flow map has LoRA adapters: merge them first (fmtt.models.diffusers.student.merge)"
        )


def scheduler_of(flow_map: NeuralFlowMap) -> Any:
    """The scheduler with which diffusers' own pipeline of the family takes the flow map's noise levels."""
    return getattr(library(), network_of(flow_map).names.scheduler)()


def base_of(path: str | Path, config: Mapping[str, Any]) -> str:
    """Folder or hub id of the pipeline that the export at ``path`` was made from."""
    where = str(config["network"]["args"]["pretrained"])
    # Inside a pipeline's folder the base is the folder itself, wherever that is moved to.
    return str(Path(path).resolve().parent) if where == ".." else where


def attach(path: str | Path, transformer: Any) -> NeuralFlowMap:
    """The flow map of an export over a transformer that is there already, which it shares.

    Raises:
        UserError: when the folder is not such an export, or does not fit the transformer.
    """
    path = Path(path)
    config = _read_config(path / CONFIG)
    args, family = config["network"]["args"], KNOWN[config["network"]["name"]]
    options = {name: args[name] for name in ("second_time", "own_guidance", "guidance", "few_step")}
    network = family(transformer, **options, adapters=args["lora"] is not None)
    if args["lora"] is not None:
        add_lora(transformer, Lora(**args["lora"]), family.names.lora)
    _fill(network, _read_weights(path / TRAINED), path / TRAINED)
    shape = tuple(config["data_shape"])
    flow_map = NeuralFlowMap(network, Linear(), shape, bidirectional=config["bidirectional"])
    flow_map.config = config
    return flow_map.eval().requires_grad_(False)


def _transformer_here(path: Path, family: type[LatentTransformer], dtype: torch.dtype | None) -> Any:
    transformer_class = getattr(library(), family.names.transformer)
    with one_line(str(path)):
        return transformer_class.from_pretrained(
            str(path), subfolder=TRANSFORMER, dtype=dtype or torch.float32, use_safetensors=True
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        args = config["network"]["args"]
        family, version = config["network"]["name"], config["format"]
        missing = [key for key in ARGS if key not in args]
        shape = [int(n) for n in config["data_shape"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); copy the export again") from error
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version!r}, this fmtt reads format {FORMAT}: re-export the model"
        )
    if family not in KNOWN:
        raise UserError(f"{path}: unknown network {family!r}, known: {', '.join(KNOWN)}")
    if missing or len(shape) != 3:
        raise UserError(f"{path}: key network.args.{missing[0] if missing else ''} is missing; re-export")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): copy the export again") from error
    weights.pop("none", None)
    return weights


def _fill(network: LatentTransformer, weights: dict[str, Tensor], path: Path) -> None:
    expected = trained_tensors(network)
    for name in sorted(expected.keys() ^ weights.keys()):
        problem = "missing" if name in expected else "unknown to the model of config.json"
        raise UserError(f"{path}: tensor {name} is {problem}; re-export the model")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            found, wanted = tuple(weights[name].shape), tuple(value.shape)
            raise UserError(f"{path}: {name} has shape {found}, the model needs {wanted}")
        with torch.no_grad():
            value.copy_(weights[name])
