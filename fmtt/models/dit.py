"""A two-time diffusion transformer (DiT, arXiv 2212.09748), differentiable in forward mode throughout.

Differences from the original: two times (the second through a zero-initialised embedding, so that an
untrained student equals its one-time teacher), RMS norms without parameters (LayerNorm's fused kernel
gives wrong gradients through a tangent), one shared modulation with a learned table per block
(arXiv 2310.00426), normalised queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmtt.models.attention import attention
from fmtt.models.embeddings import GuidanceEmbedding, LabelEmbedding, TimeEmbedding, grid_positions
from fmtt.models.norm import rms_norm
from fmtt.models.principal import PrincipalEmbedding
from fmtt.types import Cond


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

    def attend(self, x: Tensor) -> Tensor:
        B, T, dim = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, dim / heads)
        out = attention(rms_norm(q), rms_norm(k), v)
        return self.proj(out.transpose(1, 2).reshape(B, T, dim))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        m = (modulation + self.table).unsqueeze(2)  # (B, 6, 1, dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = m.unbind(1)
        x = x + gate1 * self.attend(rms_norm(x) * (1 + scale1) + shift1)
        h = self.up(rms_norm(x) * (1 + scale2) + shift2)
        return x + gate2 * self.down(F.gelu(h, approximate="tanh"))


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

    def embed_sample(self, x: Tensor) -> Tensor:
        """Tokens (B, T, dim) of samples (B, C, H, W)."""
        if isinstance(self.embed, PrincipalEmbedding):
            return self.embed(x)
        B, C, _, _ = x.shape
        (h, w), p = self.grid, self.patch
        patches = x.reshape(B, C, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * p * p)
        return self.embed(patches)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        B, C, H, W = x.shape
        (h, w), p = self.grid, self.patch
        tokens = self.embed_sample(x) + self.positions  # (B, T, dim)
        c = F.silu(self.embed_condition(s, t, cond))
        modulation = self.modulation(c).reshape(B, 6, -1)
        for block in self.blocks:
            tokens = block(tokens, modulation)
        shift, scale = self.final_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        out = self.final(rms_norm(tokens) * (1 + scale) + shift)
        return out.reshape(B, h, w, C, p, p).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
