"""From command-line words to a loaded map, its conditions and a generator."""

from __future__ import annotations

import os
from argparse import Namespace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fmtt import png
from fmtt.cli.guidance import check_teacher, chosen_scale
from fmtt.cli.text import VALUES, Text, check_family, needs_text, pipeline_teacher, refuse_options
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.checkpoint import ASSETS, load, shipped
from fmtt.types import Cond, Reward


class Model:
    """An export as a command uses it: the map, its device, conditions (one row) and a seeded generator."""

    def __init__(self, args: Namespace) -> None:
        self.device = device_named(args.device)
        self.weights_dtype = getattr(torch, args.dtype) if getattr(args, "dtype", None) else None
        self.map = load(args.export, self.device, self.weights_dtype)
        self.config: dict[str, Any] = self.map.config
        self.text: Text | None = None
        self.scale: float | None = None
        if needs_text(self.map):
            self.text = Text(self.map, args, self.device)
            self.cond, self.values = self.text.cond, VALUES
        else:
            refuse_options(args)
            self.scale = chosen_scale(self.map, getattr(args, "guidance_scale", None), args.export)
            self.cond = _condition(self.map, args.label, self.scale, args.export, self.device)
            self.values = png.value_range(self.config)
        self.seed = args.seed

    @property
    def context(self) -> dict[str, Any]:
        """What rewards built for this model's samples are told, where they ask for it."""
        told = {"value_range": self.values, "device": str(self.device)}
        return told if self.text is None else {**told, "prompt": self.text.prompt}

    def pictures(self, samples: Tensor) -> Tensor:
        """The samples as pictures: latents decoded, others as they are."""
        return samples if self.text is None else self.text.pictures(samples)

    def sees(self, reward: Reward) -> Reward:
        """The reward of the map's samples; of latents it sees the pictures."""
        return reward if self.text is None else self.text.sees(reward)

    @property
    def dtype(self) -> torch.dtype:
        """Of samples."""
        if self.text is not None:
            return torch.float32  # states keep their digits under a narrower network
        return next(self.map.parameters()).dtype

    def generator(self, stream: int = 0) -> torch.Generator:
        """A generator of the command's seed; streams differ."""
        return torch.Generator(self.device).manual_seed(self.seed + stream * 1_000_003)

    def teacher(self, export: str, option: str = "--teacher") -> NeuralFlowMap:
        """Another export on the same data and path; for a text-to-image model also a pipeline's folder.

        Raises:
            UserError: when the two do not fit.
        """
        other = pipeline_teacher(export, self.map, self.device) if self.text is not None else None
        other = other or load(export, self.device, self.weights_dtype)
        if self.text is not None:
            check_family(other, self.map, f"{option} {export}")
            if other.data_shape[0] == self.map.data_shape[0]:  # transformers take latents of any size
                other.data_shape = self.map.data_shape
        for what, mine, theirs in (
            ("data shape", self.map.data_shape, other.data_shape),
            ("interpolant", self.map.interpolant.name, other.interpolant.name),
        ):
            if mine != theirs:
                raise UserError(f"{option} {export} has {what} {theirs}, the export has {mine}")
        if option == "--teacher" and self.text is None:  # a pipeline is guided by what cond says
            check_teacher(other, self.scale, export, option)
        return other


def device_named(name: str) -> torch.device:
    """The device of ``--device``; a process of torchrun gets its own GPU.

    Raises:
        UserError: when there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun starts one process per GPU
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); give cpu, cuda or auto") from error


def _condition(
    flow_map: NeuralFlowMap, label: int | None, scale: float | None, export: str, device: torch.device
) -> Cond | None:
    given = {} if scale is None else {"guidance_scale": torch.tensor([scale], device=device)}
    classes = flow_map.config["network"]["args"].get("num_classes", 0)
    if not classes:
        if label is not None:
            raise UserError(f"{export} is not class-conditional; leave --label out")
        return given or None
    if label is None or label >= classes:
        raise UserError(f"{export} is class-conditional: give --label from 0 to {classes - 1}")
    return {"label": torch.tensor([label], device=device), **given}


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


def need_pipeline(where: str) -> None:
    """Refuse an export where a text-to-image pipeline is needed; what is not here is left to the hub.

    Raises:
        UserError: naming it.
    """
    folder = os.path.expanduser(where)
    if not os.path.exists(folder) and where in shipped():
        folder = str(ASSETS / where)
    config, index = (os.path.join(folder, f"{name}.json") for name in ("config", "model_index"))
    if os.path.isfile(config) and not os.path.isfile(index):
        raise UserError(
            f"{where} is an export and no text-to-image pipeline, which this command needs: give the folder "
            "of one (it has a model_index.json) or its hub id"
        )
