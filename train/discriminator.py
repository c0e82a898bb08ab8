"""Tells the student's samples from data: a network of fmtt.models under a linear head."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from fmtt.models.checkpoint import NETWORKS
from fmtt.types import Cond


class Discriminator(nn.Module):
    """D ``(x (B, *D), cond) -> (B,)``: larger for data than for samples.

    The trunk is a flow map's network at s = t = 1, where samples are clean.

    Args:
        data_shape: *D.
        network, args: a name in ``NETWORKS``, and its arguments apart from the data's shape.
    """

    def __init__(self, data_shape: tuple[int, ...], network: str, args: dict[str, Any]) -> None:
        super().__init__()
        self.network = NETWORKS[network](data_shape, **args)
        self.head = nn.Linear(math.prod(data_shape), 1)
        for parameter in self.network.parameters():
            # Layers that are zero make a map begin as the identity, and a judge blind.
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        end = x.new_ones(len(x))
        return self.head(self.network(x, end, end, cond).flatten(1)).squeeze(1)
