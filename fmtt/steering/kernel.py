"""Where a particle goes in one step without guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.flow.interpolant import Interpolant
from fmtt.steering.problem import Evaluation


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


def _at(coefficient: Callable[[Tensor], Tensor], t: float) -> float:
    return float(coefficient(torch.tensor(t, dtype=torch.float64)))
