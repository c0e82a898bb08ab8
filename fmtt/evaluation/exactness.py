"""How close a weighted sample's histogram is to a target law, and how close chance alone lets it come.

All divergences are in nats. A histogram is a float64 vector (bins,) that sums to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import clock, clock_judge

CLOCK_BINS = 24
"""Half-hour bins over the twelve hours of a clock."""


class ClockHistogram(NamedTuple):
    """Probabilities (24,) of half-hour bins, and the weight share of images that read as clocks."""

    probabilities: Tensor
    readable: float


def effective_size(log_weights: Tensor) -> float:
    """Kish's effective sample size (sum w)² / sum w² of log-weights (N,)."""
    w = torch.softmax(log_weights.double(), 0)
    return float(1 / w.square().sum())


def weighted_histogram(
    values: Tensor, log_weights: Tensor | None, bins: int, range: tuple[float, float]
) -> Tensor:
    """Self-normalised probabilities (bins,) of equal cells of ``range``.

    Args:
        values: (N,), all within ``range``; the upper end belongs to the last cell.
        log_weights: (N,), up to a constant; None for equal weights.

    Raises:
        UserError: when a value is outside the range or no weight is positive.
    """
    low, high = range
    values = values.double()
    if values.numel() == 0:
        raise UserError("a histogram needs at least one value")
    if not bool(((values >= low) & (values <= high)).all()):
        raise UserError(f"values must lie within [{low}, {high}]; drop or wrap the others first")
    if log_weights is None:
        log_weights = torch.zeros_like(values)
    weights = torch.softmax(log_weights.double(), 0)
    if not bool(weights.isfinite().all()):
        raise UserError("log-weights must hold a finite value and neither nan nor +inf")
    index = ((values - low) / (high - low) * bins).long().clamp_max(bins - 1)
    return torch.zeros(bins, dtype=torch.float64, device=values.device).index_add_(0, index, weights)


def smooth(q: Tensor, smoothing: float) -> Tensor:
    """Mix a histogram with the uniform one: (1 - smoothing) q + smoothing / bins."""
    return (1 - smoothing) * q + smoothing / q.shape[-1]


def kl(p: Tensor, q: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """KL(p ‖ q) in nats over the last dimension, with 0 log 0 = 0; infinite where p > 0 = q.

    Args:
        smoothing: share of the uniform law mixed into q (never into p); 0 for none.
    """
    p, q = p.double(), smooth(q.double(), smoothing)
    return (torch.xlogy(p, p) - torch.where(p > 0, p * q.log(), 0.0)).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of |p - q| over the last dimension: between 0 and 1."""
    return (p.double() - q.double()).abs().sum(-1) / 2


def multinomial_histograms(
    q: Tensor, size: int, num_draws: int, generator: torch.Generator | None = None
) -> Tensor:
    """Histograms (num_draws, bins) of ``size`` independent draws from ``q``, one binomial per bin."""
    left = torch.full((num_draws,), float(size), dtype=torch.float64)
    q = q.double().cpu()
    tail = q.flip(0).cumsum(0).flip(0)
    counts = []
    for k in range(len(q) - 1):
        share = (q[k] / tail[k]).clamp(0, 1) if tail[k] > 0 else torch.zeros((), dtype=torch.float64)
        count = torch.binomial(left, share.expand_as(left), generator=generator)
        counts.append(count)
        left = left - count
    return torch.stack([*counts, left], dim=1) / size


def noise_floor(
    q: Tensor,
    effective_size: float,
    *,
    reference_size: float | None = None,
    smoothing: float = 0.0,
    num_draws: int = 2000,
    generator: torch.Generator | None = None,
) -> float:
    """The KL that ``effective_size`` independent exact draws from ``q`` would show, on average.

    Args:
        q: the target histogram (bins,).
        effective_size: of the weighted sample that is compared with it; rounded, at least 1.
        reference_size: where the target is itself a sample's histogram, that sample's effective size:
            both sides then fluctuate. Give ``smoothing`` with it, or an empty target bin makes it infinite.
        smoothing: as given to :func:`kl`.
    """
    p = multinomial_histograms(q, max(1, round(effective_size)), num_draws, generator)
    target = q.cpu()
    if reference_size is not None:
        target = multinomial_histograms(q, max(1, round(reference_size)), num_draws, generator)
    return float(kl(p, target, smoothing=smoothing).mean())


def clock_histogram(
    images: Tensor, log_weights: Tensor | None = None, *, bins: int = CLOCK_BINS
) -> ClockHistogram:
    """The histogram of the times that the judge reads from clock images.

    Args:
        images: (N, 3, H, W) in the data set's value range.
        log_weights: (N,) or None. Unreadable images are left out and their share is told.
    """
    reading = clock_judge.read(images)
    if not bool(reading.readable.any()):
        raise UserError("none of the images reads as a clock, so their times have no histogram")
    weights = torch.zeros(len(images)) if log_weights is None else log_weights.detach().cpu()
    share = torch.softmax(weights.double(), 0)[reading.readable].sum()
    kept = reading.readable
    histogram = weighted_histogram(reading.time[kept], weights[kept], bins, (0, clock.MINUTES))
    return ClockHistogram(histogram, float(share))


def clock_density_histogram(times: Tensor, probabilities: Tensor, *, bins: int = CLOCK_BINS) -> Tensor:
    """Bin a law on a fine grid of times (M,) in minutes, such as a closed-form tilted density."""
    return weighted_histogram(times, probabilities.double().log(), bins, (0, clock.MINUTES))
