"""The guidance increment of one step, and a draw of the guided step with its density ratio."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering.kernel import Kernel
from fmtt.tensor import dot64, expand_like

STEP_SIZES = ("gradient", "clipped", "normalized")
"""How long an increment is; the last two are measured in standard deviations of the step's noise."""


def check_step_size(name: str, guidance: float) -> str:
    """``name`` itself.

    Raises:
        UserError: when it is none of STEP_SIZES, or is to be a negative number of standard deviations long.
    """
    if name not in STEP_SIZES:
        raise UserError(f"step_size must be one of {', '.join(STEP_SIZES)}, got {name!r}")
    if name != "gradient" and guidance < 0:
        raise UserError(f"guidance, the length of a {name} step, must not be negative, got {guidance:g}")
    return name


class Shift(NamedTuple):
    """A guidance increment g = factor * direction.

    Attributes:
        direction: (B, *D).
        factor: one for all, or one per particle (B,), float64.
        square: |direction|^2 (B,), float64.
    """

    direction: Tensor
    factor: float | Tensor
    square: Tensor

    @property
    def length_squared(self) -> Tensor:
        """|g|^2 (B,), float64."""
        return self.factor**2 * self.square


def shift_of(
    gradient: Tensor,
    kernel: Kernel,
    h: float,
    strength: float | Tensor,
    guidance: float,
    chi: float,
    step_size: str = "gradient",
) -> Shift:
    """The increment along the reward's gradient.

    Args:
        gradient: grad f (B, *D).
        kernel: the step without guidance, N(m, v I).
        h: its length in time.
        strength: lambda, one for all or one per particle (B,).
        step_size: "gradient" is g = (guidance v/2 + chi h) lambda grad f, where v/2 is eps h in the SDE;
            "clipped" is the same with a guidance of 1, but at most ``guidance`` standard deviations long;
            "normalized" is that long, whatever the reward's scale and lambda.
    """
    if step_size == "gradient":
        square = dot64(gradient, gradient)
        return Shift(gradient, (guidance * kernel.variance / 2 + chi * h) * strength, square)
    norm = _norm(gradient)
    longest = guidance * kernel.deviation / norm.where(norm > 0, torch.inf)
    if step_size == "normalized":
        return Shift(gradient, longest, norm**2)
    full = torch.as_tensor((kernel.variance / 2 + chi * h) * strength).to(longest).expand_as(longest)
    return Shift(gradient, full.clamp(-longest, longest), norm**2)


def _norm(gradient: Tensor) -> Tensor:
    """|gradient| (B,), float64, where squares would overflow or vanish too."""
    flat = gradient.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    scaled = flat / largest.where(largest > 0, 1)
    return largest[:, 0].double() * dot64(scaled, scaled).sqrt()


def guided(kernel: Kernel, shift: Tensor | Shift | None, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw x' ~ N(m + g, v I) and weigh it against N(m, v I).

    Args:
        shift: g (B, *D), or as a Shift, which spares its own tensor; or None.
        noise: standard normals (B, *D); None in a deterministic step, which takes no guidance.

    Returns:
        x' (B, *D), and log N(x'; m, v) - log N(x'; m + g, v) as float64 (B,).
    """
    if kernel.variance == 0 or noise is None:
        return kernel.mean, _no_ratio(kernel.mean)
    x = torch.add(kernel.mean, noise, alpha=kernel.deviation)
    if shift is None:
        return x, _no_ratio(x)
    if isinstance(shift, Tensor):
        shift = Shift(shift, 1.0, dot64(shift, shift))
    factor, along = shift.factor, dot64(shift.direction, noise)
    log_ratio = -factor * along / kernel.deviation - shift.length_squared / (2 * kernel.variance)
    if isinstance(factor, Tensor):
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision would round the factor
        moved = x.to(wide).addcmul_(expand_like(factor, x).to(wide), shift.direction.to(wide))
        return moved.to(x.dtype), log_ratio
    return x.add_(shift.direction, alpha=factor), log_ratio


def _no_ratio(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), dtype=torch.float64)
