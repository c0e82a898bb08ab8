"""The config.json of an export: what it must say, checked key by key before anything is built."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmtt.errors import UserError, nearest
from fmtt.flow.flow_map import PREDICTIONS, NeuralFlowMap
from fmtt.flow.interpolant import INTERPOLANTS
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.models.dit import DiT
from fmtt.models.mlp import MLP

FORMAT = 1
KINDS = ("flow_map", "velocity")
NETWORKS: dict[str, type[nn.Module]] = {"dit": DiT, "anchored_dit": AnchoredDiT, "mlp": MLP}

KEYS: dict[str, type] = {
    "format": int,
    "kind": str,
    "network": dict,
    "interpolant": str,
    "prediction": str,
    "data_shape": list,
    "bidirectional": bool,
    "trained": dict,
    "metrics": dict,
}
"""Every key of config.json with its type; all are required and no other is allowed."""

_JSON_NAMES = {int: "an integer", str: "a string", dict: "an object", list: "a list", bool: "true or false"}


def read_config(path: Path) -> dict[str, Any]:
    """Read and check a config.json.

    Raises:
        UserError: when the file is missing, is not JSON or says something this version cannot honour.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if (path.parent / "checkpoints").is_dir():
            hint = f"this is a training run: python -m train export {path.parent} EXPORT_DIR"
        else:
            hint = "an export holds config.json and model.safetensors"
        raise UserError(f"{path} is missing: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the export again") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy the export again") from error
    check_config(config, path)
    return config


def check_config(config: Any, path: Path) -> None:
    """Check what a config.json says.

    Raises:
        UserError: one line that names ``path`` and the key.
    """
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object")
    version = config.get("format")
    if version != FORMAT or isinstance(version, bool):
        found = "has no format version" if version is None else f"has format {version!r}"
        remedy = "install the fmtt that wrote it, or re-export"
        raise UserError(f"{path} {found}, this fmtt reads format {FORMAT}: {remedy}")
    _check_keys(config, KEYS, path)
    for key, kind in KEYS.items():
        value = config[key]
        if not isinstance(value, kind):
            raise UserError(f"{path}: {key} must be {_JSON_NAMES[kind]}, got {value!r}")
    _check_keys(config["network"], ("name", "args"), path, "network.")
    if not isinstance(config["network"]["name"], str) or not isinstance(config["network"]["args"], dict):
        raise UserError(f"{path}: network must be {{name: a string, args: an object}}")
    _check_choice(config["kind"], KINDS, path, "kind")
    _check_choice(config["interpolant"], INTERPOLANTS, path, "interpolant")
    _check_choice(config["prediction"], PREDICTIONS, path, "prediction")
    _check_choice(config["network"]["name"], NETWORKS, path, "network")
    shape = config["data_shape"]
    if not shape or not all(type(n) is int and n > 0 for n in shape):
        raise UserError(f"{path}: data_shape must be a list of positive integers, got {shape!r}")
    _check_arguments(NETWORKS[config["network"]["name"]], config["network"]["args"], path)


def build(config: Mapping[str, Any], path: Path) -> NeuralFlowMap:
    """The flow map that a checked config describes, on the meta device (shapes, no storage).

    Raises:
        UserError: when the network refuses its arguments.
    """
    network_class, args = NETWORKS[config["network"]["name"]], config["network"]["args"]
    try:
        with torch.device("meta"):
            network = network_class(tuple(config["data_shape"]), **args)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: {config['network']['name']} cannot be built: {reason}") from error
    return NeuralFlowMap(
        network,
        INTERPOLANTS[config["interpolant"]](),
        tuple(config["data_shape"]),
        prediction=config["prediction"],
        bidirectional=config["bidirectional"],
    )


def _check_keys(found: Mapping[str, Any], known: Iterable[str], path: Path, prefix: str = "") -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise UserError(f"{path}: unknown key {prefix + key!r}{nearest(key, known)}")
    for key in known:
        if key not in found:
            raise UserError(f"{path}: key {prefix + key!r} is missing; re-export the model")


def _check_choice(value: str, known: Iterable[str], path: Path, key: str) -> None:
    known = list(known)
    if value not in known:
        raise UserError(f"{path}: unknown {key} {value!r}, known: {', '.join(known)}{nearest(value, known)}")


def _check_arguments(network: type[nn.Module], args: Mapping[str, Any], path: Path) -> None:
    """Names and types against the keyword arguments of the network's class."""
    signature = inspect.signature(network).parameters.values()
    defaults = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    for key, value in args.items():
        if key not in defaults:
            raise UserError(f"{path}: unknown key 'network.args.{key}'{nearest(key, defaults)}")
        default = defaults[key]
        wanted = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, wanted) or isinstance(value, bool) is not isinstance(default, bool):
            raise UserError(f"{path}: network.args.{key} must be like {default!r}, got {value!r}")
