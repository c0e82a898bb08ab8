"""Where on the path, and how far ahead, an objective is evaluated: samplers of (s, u, t)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from train.losses.base import Times

DISTRIBUTIONS = ("uniform", "logit_normal", "noise")
MIDPOINTS = ("middle", "uniform")


class TimeSampler(NamedTuple):
    """Draws s, then t in [s, 1]: a share on the diagonal t = s, a share at t = 1, the rest between.

    Args:
        distribution: ``uniform``: (s, t) uniform on the triangle s < t (the order statistics of two
            uniform draws), and s uniform in [0, 1] on the diagonal. ``logit_normal``:
            s = sigmoid(mean + std z), t uniform in [s, 1]. ``noise``: s = 0, t uniform, and s uniform on the
            diagonal; for objectives that follow a trajectory from there.
        mean, std: of the logit-normal.
        diagonal: share of samples with t = s.
        endpoint: share of samples with t = 1 (the look-ahead).
        midpoint: ``u`` half-way between s and t, or uniform between them.
    """

    distribution: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    diagonal: float = 0.0
    endpoint: float = 0.0
    midpoint: str = "middle"

    def sample(self, batch: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Times:
        """Times with fields of shape (batch,), float32."""

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator, device=device)

        a, b = uniform(), uniform()
        if self.distribution == "uniform":
            s, t = torch.minimum(a, b), torch.maximum(a, b)
        elif self.distribution == "noise":
            s, t = torch.zeros_like(a), a
        else:
            normal = torch.randn(batch, generator=generator, device=device)
            s = torch.sigmoid(self.mean + self.std * normal)
            t = s + (1 - s) * a
        kind, fraction = uniform(), uniform()
        t = torch.where(kind < self.endpoint, torch.ones_like(t), t)
        on_diagonal = kind >= 1 - self.diagonal
        if self.distribution != "logit_normal":
            s = torch.where(on_diagonal, a, s)
        t = torch.where(on_diagonal, s, torch.maximum(s, t))
        share = torch.full_like(s, 0.5) if self.midpoint == "middle" else fraction
        return Times(s, torch.minimum(s + share * (t - s), t), t)
