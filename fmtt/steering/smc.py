"""Sequential Monte Carlo over P independent populations of N particles: weights, ESS, resampling.

Log-weights are float64 of shape (P, N). Populations never exchange particles.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=tuple[Any, ...])


class Increment(NamedTuple):
    """Statistics, per population (P,), of one step's log-weight increments under the weighted particles.

    Attributes:
        work_variance: their variance; its root, summed over steps, is the thermodynamic length.
        discrepancy: log E[w^2] - 2 log E[w] of the incremental weights w.
    """

    work_variance: Tensor
    discrepancy: Tensor


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean weight over particles: (P, N) to (P,)."""
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])


def ess_fraction(log_weights: Tensor) -> Tensor:
    """Effective sample size over N: (P, N) to (P,) in [1/N, 1]."""
    log_ess = 2 * torch.logsumexp(log_weights, 1) - torch.logsumexp(2 * log_weights, 1)
    return (log_ess.exp() / log_weights.shape[1]).clamp_max(1.0)


def increment_statistics(log_weights: Tensor, increments: Tensor) -> Increment:
    """Statistics of ``increments`` (P, N) under the weights held before them (P, N)."""
    log_p = torch.log_softmax(log_weights, dim=1)
    p = log_p.exp()
    mean = (p * increments).sum(1, keepdim=True)
    variance = (p * (increments - mean).square()).sum(1)
    first = torch.logsumexp(log_p + increments, 1)
    second = torch.logsumexp(log_p + 2 * increments, 1)
    return Increment(variance, second - 2 * first)


def systematic(
    log_weights: Tensor, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """Systematic resampling of weights (P, N): sorted ancestors (P, count); count is N if omitted.

    The cumulative sum is float64: in float32 it drifts by whole particles at large N.
    """
    P, N = log_weights.shape
    cumulative = torch.softmax(log_weights.double(), dim=1).cumsum(1)
    cumulative = cumulative / cumulative[:, -1:]
    count = N if count is None else count
    u = uniform((P, 1), generator, log_weights.device)
    positions = (torch.arange(count, device=log_weights.device, dtype=torch.float64) + u) / count
    return torch.searchsorted(cumulative, positions, right=True).clamp_max(N - 1)


RESAMPLERS = ("systematic", "none")


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """float64 uniforms drawn on the generator's own device."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)


def normal(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Standard normals drawn on the generator's own device."""
    source = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)


def flat_index(ancestors: Tensor, num_particles: int) -> Tensor:
    """Row numbers (P * M,) in a flat batch of P * num_particles from ancestors (P, M) within populations."""
    offsets = torch.arange(ancestors.shape[0], device=ancestors.device)[:, None] * num_particles
    return (ancestors + offsets).reshape(-1)


def gather(state: T, index: Tensor) -> T:
    """Select rows of **every** per-particle tensor of a NamedTuple, nested ones too; None stays None."""

    def rows(value: Any) -> Any:
        if value is None:
            return None
        return gather(value, index) if isinstance(value, tuple) else value[index]

    return type(state)(*(rows(value) for value in state))
