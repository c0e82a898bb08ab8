"""Where a particle goes in one step: the unguided transition, and a guided draw from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.flow.interpolant import Interpolant
from fmtt.steering.problem import Evaluation
from fmtt.tensor import dot64, expand_like


class Kernel(NamedTuple):
    """The unguided transition of one step, N(mean, variance I), before guidance.

    Attributes:
        mean: (B, *D).
        variance: a float; 0 is a deterministic step.
    """

    mean: Tensor
    variance: float

    @property
    def deviation(self) -> float:
        """Of every coordinate."""
        return self.variance**0.5


def sde_kernel(interpolant: Interpolant, x: Tensor, b: Tensor, t: float, t_next: float, eps: float) -> Kernel:
    """Euler-Maruyama for dx = (b + eps s) dt + sqrt(2 eps) dW, with s = (beta b - beta' x) / (W alpha).

    The mean is one combination of x and b, with coefficients in float64.
    """
    h = t_next - t
    if eps == 0:
        return Kernel(torch.add(x, b, alpha=h), 0.0)
    now = torch.tensor(t, dtype=torch.float64)
    alpha, beta = interpolant.alpha(now).item(), interpolant.beta(now).item()
    d_alpha, d_beta = interpolant.d_alpha(now).item(), interpolant.d_beta(now).item()
    scale = h * eps / (alpha * (alpha * d_beta - d_alpha * beta))
    return Kernel(((1 - scale * d_beta) * x).add_(b, alpha=h + scale * beta), 2 * eps * h)


def renoise_kernel(interpolant: Interpolant, endpoint: Tensor, t_next: float) -> Kernel:
    """Jump to the look-ahead's endpoint and add fresh noise: N(beta endpoint, alpha^2 I) at t_next.

    With an exact flow map it keeps the model's marginals at any step size (multi-step consistency
    sampling, arXiv 2303.01469), so few steps go far.
    """
    return Kernel(_at(interpolant.beta, t_next) * endpoint, _at(interpolant.alpha, t_next) ** 2)


def kernel(
    name: str, interpolant: Interpolant, x: Tensor, now: Evaluation, t: float, t_next: float, eps: float
) -> Kernel:
    """The transition called ``name`` from what is known at x."""
    if name == "renoise":
        assert now.endpoint is not None
        return renoise_kernel(interpolant, now.endpoint, t_next)
    assert now.velocity is not None
    return sde_kernel(interpolant, x, now.velocity, t, t_next, eps)


def noisy_steps(noises: tuple[float, ...], name: str) -> tuple[bool, ...]:
    """Which steps draw noise under the kernel called ``name``."""
    last = len(noises) - 1
    return tuple(k < last if name == "renoise" else eps > 0 for k, eps in enumerate(noises))


def interpolate_towards(
    interpolant: Interpolant, x: Tensor, endpoint: Tensor, t: float, t_next: float
) -> Tensor:
    """Move along the interpolant from the noise that explains x to ``endpoint``: no network."""
    noise = (x - _at(interpolant.beta, t) * endpoint) / _at(interpolant.alpha, t)
    return _at(interpolant.beta, t_next) * endpoint + _at(interpolant.alpha, t_next) * noise


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
        return x.addcmul_(expand_like(factor, x).to(x.dtype), shift.direction), log_ratio
    return x.add_(shift.direction, alpha=factor), log_ratio


def _no_ratio(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), dtype=torch.float64)


def shift_of(
    gradient: Tensor, kernel: Kernel, h: float, strength: float | Tensor, guidance: float, chi: float
) -> Shift:
    """The guidance increment g = (guidance v/2 + chi h) lambda grad f; v/2 is eps h in the SDE.

    Args:
        strength: lambda, one for all or one per particle (B,).
    """
    factor = (guidance * kernel.variance / 2 + chi * h) * strength
    return Shift(gradient, factor, dot64(gradient, gradient))


def normalized_shift(gradient: Tensor, kernel: Kernel, guidance: float) -> Tensor:
    """An increment (B, *D) of ``guidance`` standard deviations of the step's noise along the gradient,
    whatever the reward's scale; 0 where the gradient is."""
    norm = expand_like(gradient.flatten(1).norm(dim=1), gradient)
    return (guidance * kernel.deviation) * gradient / norm.clamp_min(torch.finfo(gradient.dtype).tiny)


def _at(coefficient: Callable[[Tensor], Tensor], t: float) -> float:
    return float(coefficient(torch.tensor(t, dtype=torch.float64)))
