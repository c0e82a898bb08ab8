"""The log-probability of a class under a small classifier that a file holds.

The classifier is a multilayer perceptron of the flattened sample, log softmax(W_L silu(... silu(W_1 x + b_1)
...) + b_L). With strength 1 the tilted law rho(x) p(label | x) / Z is the model's law given the label, and Z
the label's share in it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fmtt.errors import UserError
from fmtt.rewards.description import Described, Description
from fmtt.rewards.picture import positive
from fmtt.types import Cond

LAYER = re.compile(r"^layers\.(\d+)\.(weight|bias)$")


class Classifier(Described):
    """Log-probability of one class under a multilayer perceptron.

    Args:
        path: safetensors file of ``layers.N.weight`` (outputs, inputs) and ``layers.N.bias`` (outputs,), N
            from 0; the last layer's outputs are the classes' logits.
        label: the class.
        strength: multiplier of the log-probability.

    Raises:
        UserError: when the file is no such classifier, or has no such class.
    """

    description = Description(
        "log-probability of a class under a multilayer perceptron from a file",
        differentiable=True,
        value_range=(-math.inf, 0.0),
    )

    def __init__(self, path: str, label: int, strength: float = 1.0) -> None:
        self.path, self.label, self.strength = path, label, positive("strength", strength)
        self.layers = read_layers(Path(path))
        classes = len(self.layers[-1][1])
        if not 0 <= label < classes:
            raise UserError(f"label must lie in [0, {classes - 1}], the classes of {path}; got {label}")

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of samples (B, *D)."""
        return self.strength * self.log_probabilities(x1)[:, self.label]

    def log_probabilities(self, x1: Tensor) -> Tensor:
        """log p(class | x), (B, classes), of samples (B, *D).

        Raises:
            UserError: when samples have another size than the classifier's inputs.
        """
        h = x1.flatten(1)
        wanted = self.layers[0][0].shape[1]
        if h.shape[1] != wanted:
            raise UserError(f"{self.path} classifies samples of {wanted} values, these have {h.shape[1]}")
        for k, (weight, bias) in enumerate(self.layers):
            h = F.linear(F.silu(h) if k else h, weight.to(h), bias.to(h))
        return torch.log_softmax(h, 1)

    def __repr__(self) -> str:
        return f"classifier:path={self.path},label={self.label},strength={self.strength:g}"


def read_layers(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights (outputs, inputs) and biases (outputs,) of the file, in order.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"classifier {path} cannot be read: {error}") from error
    layers: list[tuple[Tensor, Tensor]] = []
    unknown = [name for name in tensors if LAYER.match(name) is None]
    if unknown or not tensors or len(tensors) % 2:
        what = f"{unknown[0]!r} is" if unknown else f"{len(tensors)} tensors are"
        raise UserError(f"classifier {path}: {what} not pairs of layers.N.weight and layers.N.bias")
    for k in range(len(tensors) // 2):
        weight, bias = tensors.get(f"layers.{k}.weight"), tensors.get(f"layers.{k}.bias")
        if weight is None or bias is None:
            raise UserError(f"classifier {path} lacks layers.{k}.weight or layers.{k}.bias")
        inputs = len(layers[-1][1]) if layers else weight.shape[-1] if weight.ndim else 0
        if weight.ndim != 2 or weight.shape[1] != inputs or bias.shape != weight.shape[:1]:
            raise UserError(
                f"classifier {path}: layers.{k} has shapes {tuple(weight.shape)} and {tuple(bias.shape)}, "
                f"which do not follow {inputs} inputs"
            )
        layers.append((weight, bias))
    return layers
