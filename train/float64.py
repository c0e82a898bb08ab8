"""Float64 throughout, for networks that compute parts of themselves in float32 whatever their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class Float64(TorchFunctionMode):
    """Inside the block, whoever asks torch for float32 is given float64.

    Timestep embeddings, norms, rotations and linear attention of diffusers' transformers go through float32
    by their own code. A difference of two passes at times 1e-5 apart would be made of that rounding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passing = False

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside this block torch does what it is told."""
        before, self.passing = self.passing, True
        try:
            yield
        finally:
            self.passing = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.passing:
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_wider, args), **{name: _wider(value) for name, value in kwargs.items()})


def _wider(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value
