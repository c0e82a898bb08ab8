"""Sequential Monte Carlo over P independent populations of N particles: weights, ESS, gathering.

Log-weights are float64 of shape (P, N). Populations never exchange particles.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fmtt.steering.draws import normal, uniform
from fmtt.steering.resampling import RESAMPLERS, systematic

__all__ = [
    "RESAMPLERS",
    "Increment",
    "ess_fraction",
    "flat_index",
    "gather",
    "increment_statistics",
    "log_mean_exp",
    "normal",
    "systematic",
    "uniform",
]

T = TypeVar("T", bound=tuple[Any, ...])


class Increment(NamedTuple):
    """Statistics, per population (P,), of one step's log-weight increments under the weighted particles.

    Attributes:
        work_variance: their variance.
        length: their standard deviation, the mean of those under the weights before and after the step;
            its sum over steps is the thermodynamic length.
        discrepancy: log E[w^2] - 2 log E[w] of the incremental weights w.
    """

    work_variance: Tensor
    length: Tensor
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
    first = torch.logsumexp(log_p + increments, 1)
    second = torch.logsumexp(log_p + 2 * increments, 1)
    before, after = _variance(log_p, increments), _variance(log_weights + increments, increments)
    return Increment(before, (before.sqrt() + after.sqrt()) / 2, second - 2 * first)


def _variance(log_weights: Tensor, values: Tensor) -> Tensor:
    p = torch.softmax(log_weights, dim=1)
    mean = (p * values).sum(1, keepdim=True)
    return (p * (values - mean).square()).sum(1)


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
