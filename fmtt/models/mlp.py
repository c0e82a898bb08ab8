"""A two-time MLP for low-dimensional data; every operation has a forward-mode derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmtt.models.embeddings import GuidanceEmbedding, LabelEmbedding, TimeEmbedding
from fmtt.types import Cond

POSITION_FREQUENCIES = 6
"""How many frequencies of the coordinates a network that is given some has."""


class ResidualLayer(nn.Module):
    """x + down(silu(up(x) (1 + scale) + shift)), scale and shift from the times.

    Nothing is normalised: a velocity grows with the distance from the data.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return x + self.down(F.silu(self.up(x) * (1 + scale) + shift))


class MLP(nn.Module):
    """Network ``(x (B, *D), s (B,), t (B,), cond) -> (B, *D)``; x is flattened.

    The second time enters through a zero-initialised embedding, so that an untrained student equals
    its one-time teacher.

    Args:
        data_shape: *D.
        width: hidden width.
        depth: residual layers.
        num_classes: if positive, ``cond["label"]`` (B,) in [0, num_classes] is required, where
            ``num_classes`` itself is the null label.
        guidance: whether the map is conditioned on a guidance scale, ``cond["guidance_scale"]`` (B,); 1
            (no guidance) where it is not given. Enters through a zero-initialised embedding.
        max_frequency, second_max_frequency: highest frequencies of the two time embeddings.
        position_frequency: if positive, cos and sin of every coordinate enter beside x, at angular
            frequencies from 1/2 to this in units of pi: for data with edges, whose velocity bends sharply.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 3,
        num_classes: int = 0,
        guidance: bool = False,
        max_frequency: float = 4.0,
        second_max_frequency: float = 4.0,
        position_frequency: float = 0.0,
    ) -> None:
        super().__init__()
        size = int(torch.Size(data_shape).numel())
        if size < 1 or width < 1 or depth < 0:
            raise ValueError(f"MLP needs positive sizes, got {data_shape=}, {width=}, {depth=}")
        self.position_frequency = position_frequency
        features = 1 + 2 * POSITION_FREQUENCIES if position_frequency > 0 else 1
        self.embed = nn.Linear(size * features, width)
        self.time = TimeEmbedding(width, max_frequency=max_frequency)
        self.second_time = TimeEmbedding(width, max_frequency=second_max_frequency, zero_init=True)
        self.guidance = GuidanceEmbedding(width) if guidance else None
        self.label = LabelEmbedding(num_classes + 1, width) if num_classes else None
        self.layers = nn.ModuleList(ResidualLayer(width) for _ in range(depth))
        self.final = nn.Linear(width, size)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def features(self, x: Tensor) -> Tensor:
        """x (B, d), followed by cos and sin of its coordinates where there are frequencies."""
        if self.position_frequency <= 0:
            return x
        exponents = torch.linspace(0, 1, POSITION_FREQUENCIES, device=x.device, dtype=x.dtype)
        angles = x[:, :, None] * (0.5 * math.pi * (2 * self.position_frequency) ** exponents)
        return torch.cat([x, angles.cos().flatten(1), angles.sin().flatten(1)], dim=1)

    def embed_condition(self, s: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The vector that modulates every layer, (B, width)."""
        c = self.time(s) + self.second_time(t)
        if self.guidance is not None:
            c = c + self.guidance(s, cond)
        return c if self.label is None else c + self.label(cond)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        c = F.silu(self.embed_condition(s, t, cond))
        h = self.embed(self.features(x.flatten(1)))  # (B, width)
        for layer in self.layers:
            h = layer(h, c)
        return self.final(h).reshape(x.shape)
