"""From command-line words to a loaded map, its conditions and a generator."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from typing import Any

import torch

from fmtt import png
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.checkpoint import load
from fmtt.types import Cond


class Model:
    """An export as a command uses it: the map, its device, conditions (one row) and a seeded generator."""

    def __init__(self, args: Namespace) -> None:
        self.device = _device(args.device)
        self.map = load(args.export, self.device)
        self.config: dict[str, Any] = self.map.config
        self.cond = _condition(self.map, args.label, args.export, self.device)
        self.values = png.value_range(self.config)
        self.seed = args.seed

    @property
    def context(self) -> dict[str, Any]:
        """What rewards built for this model's samples are told, where they ask for it."""
        return {"value_range": self.values, "device": str(self.device)}

    @property
    def dtype(self) -> torch.dtype:
        return next(self.map.parameters()).dtype

    def generator(self, stream: int = 0) -> torch.Generator:
        """A generator of the command's seed; streams differ."""
        return torch.Generator(self.device).manual_seed(self.seed + stream * 1_000_003)

    def teacher(self, export: str, option: str = "--teacher") -> NeuralFlowMap:
        """Another export on the same data and path.

        Raises:
            UserError: when the two do not fit.
        """
        other = load(export, self.device)
        for what, mine, theirs in (
            ("data shape", self.map.data_shape, other.data_shape),
            ("interpolant", self.map.interpolant.name, other.interpolant.name),
        ):
            if mine != theirs:
                raise UserError(f"{option} {export} has {what} {theirs}, the export has {mine}")
        return other


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); give cpu, cuda or auto") from error


def _condition(flow_map: NeuralFlowMap, label: int | None, export: str, device: torch.device) -> Cond | None:
    classes = flow_map.config["network"]["args"].get("num_classes", 0)
    if not classes:
        if label is not None:
            raise UserError(f"{export} is not class-conditional; leave --label out")
        return None
    if label is None or label >= classes:
        raise UserError(f"{export} is class-conditional: give --label from 0 to {classes - 1}")
    return {"label": torch.tensor([label], device=device)}


def rows(cond: Cond | None, n: int) -> Cond | None:
    """One row of conditions, ``n`` times."""
    return None if cond is None else {name: value.expand(n, *value.shape[1:]) for name, value in cond.items()}


def installed(package: str) -> bool:
    """Whether an optional package can be imported."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def need_extra(*packages: str, extra: str = "evaluate") -> None:
    """Refuse a command whose optional packages are not there.

    Raises:
        UserError: naming them and the extra that brings them.
    """
    missing = [name for name in packages if not installed(name)]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: pip install 'fmtt[{extra}]'")
