"""Time and position embeddings. Computed in float32 (or wider), whatever the network's dtype."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.types import Cond


class TimeEmbedding(nn.Module):
    """cos/sin features of a time in [0, 1], then a two-layer MLP: (B,) to (B, dim).

    Args:
        dim: output width.
        max_frequency: highest angular frequency in units of pi. High frequencies make the time
            derivative of the network large, which upsets objectives that differentiate in t.
        num_frequencies: geometrically spaced from 1/2 to ``max_frequency``.
        zero_init: start as the zero function.
    """

    def __init__(
        self,
        dim: int,
        *,
        max_frequency: float = 8.0,
        num_frequencies: int = 16,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.max_frequency = max_frequency
        self.num_frequencies = num_frequencies
        # Not a buffer: converting the module to bfloat16 would round the frequencies.
        self._frequencies: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.hidden = nn.Linear(2 * num_frequencies, dim)
        self.out = nn.Linear(dim, dim)
        if zero_init:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def __getstate__(self) -> dict[str, Any]:
        # A copy computes its own: what was computed inside a forward-mode derivative cannot be copied.
        return {**self.__dict__, "_frequencies": {}}

    def frequencies(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Angular frequencies (num_frequencies,), computed once per device and dtype."""
        key = (device, dtype)
        if key not in self._frequencies:
            exponents = torch.linspace(0, 1, self.num_frequencies, device=device, dtype=dtype)
            self._frequencies[key] = 0.5 * (2 * self.max_frequency) ** exponents * math.pi
        return self._frequencies[key]

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            t = t.to(torch.promote_types(t.dtype, torch.float32))
            angles = t[:, None] * self.frequencies(t.device, t.dtype)
            features = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, 2F)
            return self.out(nn.functional.silu(self.hidden(features.to(self.hidden.weight.dtype))))


class GuidanceEmbedding(nn.Module):
    """An embedding of the guidance scale w >= 0 as w / (1 + w), the zero function until it is trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.share = TimeEmbedding(dim, max_frequency=4.0, zero_init=True)

    def forward(self, t: Tensor, cond: Cond | None = None) -> Tensor:
        """(B, dim) for ``cond["guidance_scale"]`` (B,), or for w = 1 without; in the dtype of ``t`` (B,)."""
        given = None if cond is None else cond.get("guidance_scale")
        scale = torch.ones_like(t) if given is None else given.to(t)
        return self.share(scale / (1 + scale))


class LabelEmbedding(nn.Embedding):
    """An embedding of the condition "label"."""

    def forward(self, cond: Cond | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, dim) for ``cond["label"]`` (B,) integers.

        Raises:
            UserError: when there is no label.
        """
        if cond is None or "label" not in cond:
            raise UserError('this network is class-conditional: pass cond={"label": (B,) integers}')
        return super().forward(cond["label"])


def grid_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, (height * width, dim); ``dim`` must be divisible by 4."""
    if dim % 4:
        raise ValueError(f"dim must be divisible by 4 for 2-D positions, got {dim}")
    frequencies = 1.0 / 100 ** (torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    parts = []
    for coordinate in (y, x):
        angles = coordinate.reshape(-1, 1).float() * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1)
