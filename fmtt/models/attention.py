"""Attention that every derivative passes through, and that is quick on the device at hand."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v for q, k, v (B, heads, T, dim / heads).

    On the CPU it is written out: the fused kernel has no forward-mode derivative, and its backward takes
    half of a training step at the short sequences that a CPU is used for. On a GPU the fused kernels
    serve, and :func:`fmtt.flow.calculus.jvp` switches to the one that can be differentiated forward.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, T, T)
    return scores.softmax(-1) @ v
