"""The heads of the aesthetic predictor and of ImageReward: linear layers in a row, no activation between."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fmtt.errors import UserError

LAYER = re.compile(r"^(?:layers\.(\d+)\.|linear\.|)(weight|bias)$")


def build(tensors: Mapping[str, Tensor], features: int, where: str) -> nn.Sequential:
    """Linear layers in the order of their numbers, from ``layers.N.weight`` and ``layers.N.bias``.

    A single layer may be called ``weight`` and ``bias``. The numbers skip the dropout layers of training; the
    last layer has one output.

    Args:
        features: width of what the head reads.
        where: what holds the tensors, for messages.

    Raises:
        UserError: when a tensor is unknown, missing or of the wrong shape.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = LAYER.match(name)
        if match is None:
            raise UserError(
                f"{where}: {name!r} is no weight or bias of a head (layers.N.weight, layers.N.bias)"
            )
        found.setdefault(int(match[1] or 0), {})[match[2]] = value
    layers, width = [], features
    for number, layer in sorted(found.items()):
        weight, bias = layer.get("weight"), layer.get("bias")
        if weight is None or bias is None:
            raise UserError(f"{where}: layer {number} of the head lacks its weight or its bias")
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{where}: layer {number} of the head has shape {tuple(weight.shape)} where {width} features "
                "come in; the head belongs to another network"
            )
        linear = nn.Linear(width, weight.shape[0], dtype=torch.float32)
        linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(linear)
        width = weight.shape[0]
    if not layers or width != 1:
        raise UserError(f"{where}: the head ends in {width} outputs instead of 1")
    return nn.Sequential(*layers).eval().requires_grad_(False)


def precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a head behind a network of ``dtype``: float32, or float64."""
    return torch.promote_types(dtype, torch.float32)
