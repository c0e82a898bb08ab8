"""A two-time diffusion transformer (DiT, arXiv 2212.09748), differentiable in forward mode throughout.

Differences from the original: two times (the second through a zero-initialised embedding, so that an
untrained student equals its one-time teacher), RMS norms without parameters (LayerNorm's fused kernel
gives wrong gradients through a tangent), one shared modulation with a learned table per block
(arXiv 2310.00426), normalised queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmtt.models.attention import attention
from fmtt.models.embeddings import GuidanceEmbedding, LabelEmbedding, TimeEmbedding, grid_positions
from fmtt.models.norm import rms_norm
from fmtt.models.principal import PrincipalEmbedding
from fmtt.models.slide import Slide
from fmtt.types import Cond


class Layers(NamedTuple):
    """What a block applies: its table (6, dim) and its linear layers."""

    table: Tensor
    qkv: Callable[[Tensor], Tensor]
    proj: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Self-attention and an MLP, each modulated by shift, scale and gate."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.table = nn.Parameter(torch.zeros(6, dim))

    def layers(self, anchor: Block | None, slide: Slide | None) -> Layers:
        """Its own, or where an anchor is given those between the anchor's and its own."""
        if anchor is None or slide is None:
            return Layers(self.table, self.qkv, self.proj, self.up, self.down)
        return Layers(
            slide.between(anchor.table[None], self.table[None]),
            partial(slide.linear, anchor.qkv, self.qkv),
            partial(slide.linear, anchor.proj, self.proj),
            partial(slide.linear, anchor.up, self.up),
            partial(slide.linear, anchor.down, self.down),
        )

    def attend(self, qkv: Tensor) -> Tensor:
        """Tokens (B, T, dim) that attention makes of queries, keys and values (B, T, 3 dim)."""
        B, T, width = qkv.shape
        q, k, v = qkv.reshape(B, T, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        out = attention(rms_norm(q), rms_norm(k), v)  # (B, heads, T, dim / heads)
        return out.transpose(1, 2).reshape(B, T, width // 3)

    def forward(
        self, x: Tensor, modulation: Tensor, anchor: Block | None = None, slide: Slide | None = None
    ) -> Tensor:
        """Tokens (B, T, dim) of tokens x, modulated by (B or 1, 6, dim); ``anchor``, ``slide``: see
        :meth:`layers`."""
        layers = self.layers(anchor, slide)
        m = (modulation + layers.table).unsqueeze(2)  # (B, 6, 1, dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = m.unbind(1)
        attended = self.attend(layers.qkv(rms_norm(x) * (1 + scale1) + shift1))
        x = x + gate1 * layers.proj(attended)
        h = layers.up(rms_norm(x) * (1 + scale2) + shift2)
        return x + gate2 * layers.down(F.gelu(h, approximate="tanh"))


class DiT(nn.Module):
    """Network ``(x (B, C, H, W), s (B,), t (B,), cond) -> (B, C, H, W)``.

    Args:
        data_shape: (C, H, W).
        patch: side of a square patch; must divide H and W.
        dim: width; must be divisible by 4 and by ``heads``.
        num_classes: if positive, ``cond["label"]`` (B,) in [0, num_classes] is required, where
            ``num_classes`` itself is the null label.
        guidance: whether the map is conditioned on a guidance scale, ``cond["guidance_scale"]`` (B,); 1
            (no guidance) where it is not given. Enters through a zero-initialised embedding.
        principal: if positive, tokens are made from this many principal components of the data instead of
            patches of the sample; for data that lie near a subspace. Training finds them.
        max_frequency, second_max_frequency: highest frequencies of the two time embeddings.
    """

    def __init__(
        self,
        data_shape: tuple[int, int, int],
        *,
        patch: int = 4,
        dim: int = 128,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        guidance: bool = False,
        principal: int = 0,
        max_frequency: float = 8.0,
        second_max_frequency: float = 4.0,
    ) -> None:
        super().__init__()
        C, H, W = data_shape
        if H % patch or W % patch:
            raise ValueError(f"patch {patch} does not divide the image size {H}x{W}")
        if dim % heads or dim % 4:
            raise ValueError(f"dim {dim} must be divisible by 4 and by heads {heads}")
        self.patch, self.grid, self.num_classes = patch, (H // patch, W // patch), num_classes
        width = C * patch * patch
        tokens = self.grid[0] * self.grid[1]
        if principal:
            self.embed = PrincipalEmbedding(C * H * W, principal, tokens, dim)
        else:
            self.embed = nn.Linear(width, dim)
        self.positions = nn.Parameter(grid_positions(*self.grid, dim))
        self.time = TimeEmbedding(dim, max_frequency=max_frequency)
        self.second_time = TimeEmbedding(dim, max_frequency=second_max_frequency, zero_init=True)
        self.guidance = GuidanceEmbedding(dim) if guidance else None
        self.label = LabelEmbedding(num_classes + 1, dim) if num_classes else None
        self.modulation = nn.Linear(dim, 6 * dim)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.final = nn.Linear(dim, width)
        for linear in (self.modulation, self.final_modulation, self.final):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def embed_condition(self, s: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The vector that modulates every block, (B, dim)."""
        c = self.time(s) + self.second_time(t)
        if self.guidance is not None:
            c = c + self.guidance(s, cond)
        return c if self.label is None else c + self.label(cond)

    def modulations(self, s: Tensor, t: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        """Shifts, scales and gates of every block (B, 6, dim), shift and scale of the end (B, 2, dim)."""
        c = F.silu(self.embed_condition(s, t, cond))
        return self.modulation(c).unflatten(1, (6, -1)), self.final_modulation(c).unflatten(1, (2, -1))

    @property
    def all_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def first(self) -> nn.Linear:
        """The layer that makes tokens of :meth:`features`."""
        return self.embed.linear if isinstance(self.embed, PrincipalEmbedding) else self.embed

    def features(self, x: Tensor) -> Tensor:
        """Patches (B, T, C patch^2) of samples (B, C, H, W), or coefficients (B, principal)."""
        if isinstance(self.embed, PrincipalEmbedding):
            return self.embed.coefficients(x)
        B, C, _, _ = x.shape
        (h, w), p = self.grid, self.patch
        return x.reshape(B, C, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * p * p)

    def image(self, out: Tensor) -> Tensor:
        """Samples (B, C, H, W) of patches (B, T, C patch^2)."""
        (h, w), p = self.grid, self.patch
        B, C = len(out), out.shape[-1] // p**2
        return out.reshape(B, h, w, C, p, p).permute(0, 3, 1, 4, 2, 5).reshape(B, C, h * p, w * p)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        modulation, ending = self.modulations(s, t, cond)
        tokens = self.first(self.features(x)).reshape(len(x), *self.positions.shape) + self.positions
        for block in self.all_blocks:
            tokens = block(tokens, modulation)
        shift, scale = ending.unsqueeze(2).unbind(1)
        return self.image(self.final(rms_norm(tokens) * (1 + scale) + shift))
