"""What a data source hands to training."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Samples x (B, *D) float32, and their conditioning: batch-first tensors by name, or None."""

    x: Tensor
    cond: dict[str, Tensor] | None = None
