"""Small tensor helpers: times against batches, and gathering particles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmtt.types import Cond, Time

DOT_BLOCK = 64
"""How many products :func:`dot64` sums in their own precision."""


def expand_like(v: Tensor, x: Tensor) -> Tensor:
    """Reshape ``v`` (B,) to (B, 1, ...) so that it multiplies ``x`` (B, *D) per sample."""
    return v.reshape(v.shape[0], *([1] * (x.ndim - 1)))


def batch_time(t: Time, x: Tensor) -> Tensor:
    """Return ``t`` as a tensor of shape (B,) on the device and in the dtype of ``x`` (B, *D).

    For an ``x`` in half precision times are float32: bfloat16 has three decimal digits.

    Raises:
        ValueError: when ``t`` is a tensor whose shape is neither () nor (B,).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(t, Tensor):
        return torch.full((x.shape[0],), float(t), device=x.device, dtype=dtype)
    if t.ndim == 0:
        return t.to(device=x.device, dtype=dtype).expand(x.shape[0])
    if t.shape != (x.shape[0],):
        raise ValueError(f"a time must be a float or have shape ({x.shape[0]},), got {tuple(t.shape)}")
    return t.to(device=x.device, dtype=dtype)


def expanded_time(t: Time, x: Tensor) -> Tensor:
    """:func:`batch_time`, where a number becomes one entry expanded to (B,): its stride, 0, tells a network
    that all samples share it. To differentiate with respect to such a time, clone it first."""
    if isinstance(t, Tensor):
        return batch_time(t, x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((), float(t), device=x.device, dtype=dtype).expand(x.shape[0])


def per_time(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """``function`` of every entry of ``t`` (B,); of an expanded time, the result expanded."""
    return function(t[:1]).expand(len(t)) if t.stride(0) == 0 and len(t) > 0 else function(t)


def take_cond(cond: Cond | None, index: Tensor | slice) -> Cond | None:
    """Select rows of every tensor of ``cond``; None stays None."""
    return None if cond is None else {name: value[index] for name, value in cond.items()}


def per_sample(x: Tensor) -> Tensor:
    """Sum everything but the batch: (B, *D) to (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample: two (B, *D) to (B,)."""
    return per_sample(a * b)


def dot64(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample in float64: two (B, *D) to (B,).

    Products are taken in the tensors' own precision, at least float32, and so are sums of DOT_BLOCK of them
    where a sample divides into such; those are summed in float64. It takes a thirtieth of the time of float64
    copies of both.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    products = a.to(dtype) * b.to(dtype)
    if products.ndim == 1:
        return products.double()
    products = products.flatten(1)
    if dtype != torch.float64 and products.shape[1] % DOT_BLOCK == 0:
        products = products.unflatten(1, (DOT_BLOCK, products.shape[1] // DOT_BLOCK)).sum(1)
    return products.sum(1, dtype=torch.float64)
