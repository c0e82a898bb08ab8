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
    square = torch.softmax(log_weights, 1).square().sum(1)
    return (1 / (square * log_weights.shape[1])).clamp_max(1.0)


def increment_statistics(log_weights: Tensor, increments: Tensor) -> Increment:
    """Statistics of ``increments`` (P, N) under the weights held before them (P, N)."""
    log_p = torch.log_softmax(log_weights, 1)
    tilted = log_p + increments
    first, second = torch.logsumexp(torch.stack([tilted, tilted + increments]), 2)
    p = torch.stack([log_p.exp(), torch.softmax(tilted, 1)])
    mean = (p * increments).sum(2, keepdim=True)
    before, after = (p * (increments - mean).square()).sum(2)
    return Increment(before, (before.sqrt() + after.sqrt()) / 2, second - 2 * first)


def flat_index(ancestors: Tensor, num_particles: int) -> Tensor:
    """Row numbers (P * M,) in a flat batch of P * num_particles from ancestors (P, M) within populations."""
    offsets = torch.arange(ancestors.shape[0], device=ancestors.device)[:, None] * num_particles
    return (ancestors + offsets).reshape(-1)


def gather(state: T, index: Tensor) -> T:
    """Select rows of **every** per-particle tensor of a NamedTuple, nested ones too; None stays None.

    A tensor that it holds twice is selected once.
    """
    done: dict[int, Tensor] = {}

    def rows(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tuple):
            return type(value)(*map(rows, value))
        if id(value) not in done:
            done[id(value)] = value[index]
        return done[id(value)]

    return rows(state)
