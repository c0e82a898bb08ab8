"""Few-step sampling with a flow map."""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import setup
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap


@torch.inference_mode(False)
@torch.no_grad()
def sample(
    flow_map: FlowMap,
    num_samples: int,
    *,
    steps: int = 4,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Draw samples by k steps of the flow map on a uniform grid.

    Args:
        num_samples: B.
        steps: k map steps from t = 0 to 1.
        data_shape: *D, where the map does not say its own.
        cond: one row for all samples, or one row per sample.
        chunk_size: samples per network call.

    Returns:
        Samples (B, *D).

    Raises:
        UserError: when counts or shapes do not fit.
    """
    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1, got {num_samples}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size must be at least 1, got {chunk_size}")
    start = setup.particles(flow_map, 1, num_samples, data_shape, cond, device, dtype, generator=generator)
    size = chunk_size or num_samples
    parts = []
    for i in range(0, num_samples, size):
        rows = slice(i, i + size)
        x, rows_cond = start.x[rows], take_cond(start.cond, rows)
        for k in range(steps):
            x = flow_map(x, k / steps, (k + 1) / steps, rows_cond)
        parts.append(x)
    return torch.cat(parts)
