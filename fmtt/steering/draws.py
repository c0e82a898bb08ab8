"""Random draws from a torch.Generator, made on the generator's own device."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """float64 uniforms in [0, 1)."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)


def normal(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Standard normals."""
    source = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)


def signs(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Independent +1 and -1 with equal probability (Rademacher variables)."""
    source = generator.device if generator is not None else device
    bits = torch.randint(0, 2, shape, generator=generator, device=source)
    return (2 * bits - 1).to(device=device, dtype=dtype)
