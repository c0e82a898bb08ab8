"""Resampling: log-weights (P, N) in, sorted ancestors (P, count) out, float64 throughout.

Every scheme is unbiased: particle i has count * w_i descendants on average. They differ in the variance of
that number: multinomial has the most, residual and stratified never more than it, and systematic and SSP
keep every number within one of its average. Systematic and stratified gain where neighbours are alike; SSP
(Srinivasan sampling process; Gerber, Chopin and Whiteley 2019, arXiv 1708.02230) has negatively associated
numbers in any order, and runs through the particles one by one on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering.draws import uniform

Scheme = Callable[[Tensor, torch.Generator | None, int | None], Tensor]
"""``scheme(log_weights (P, N), generator, count)``: ancestors (P, count), count = N if None."""


class Resampled(NamedTuple):
    """Ancestors (P, N) and the log-weights (P, N) that their descendants carry."""

    ancestors: Tensor
    log_weights: Tensor


def systematic(
    log_weights: Tensor, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """Positions (i + u) / count with one uniform u per population."""
    P, count = _shape(log_weights, count)
    u = uniform((P, 1), generator, log_weights.device)
    return _invert(log_weights, (_steps(count, log_weights) + u) / count)


def stratified(
    log_weights: Tensor, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """Positions (i + u_i) / count with a uniform of its own for each."""
    P, count = _shape(log_weights, count)
    u = uniform((P, count), generator, log_weights.device)
    return _invert(log_weights, (_steps(count, log_weights) + u) / count)


def multinomial(
    log_weights: Tensor, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """Independent draws."""
    P, count = _shape(log_weights, count)
    u = uniform((P, count), generator, log_weights.device)
    return _invert(log_weights, u.sort(1).values)


def residual(
    log_weights: Tensor, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """floor(count * w_i) descendants for certain, the rest by independent draws from what is left."""
    P, count = _shape(log_weights, count)
    whole, fraction = _expected(log_weights, count)
    left = count - whole.sum(1, keepdim=True)
    u = uniform((P, count), generator, log_weights.device)
    drawn = _invert(fraction.clamp_min(1e-300).log(), u)
    wanted = (torch.arange(count, device=u.device) < left).to(whole.dtype)
    return _expand(whole.scatter_add(1, drawn, wanted), count)


def ssp(log_weights: Tensor, generator: torch.Generator | None = None, count: int | None = None) -> Tensor:
    """Srinivasan sampling process: fractional parts of count * w fight in pairs until all are whole.

    Of a pair with fractions a and b one leaves as 0 or 1 and the other carries a + b or a + b - 1 on, with
    the odds that keep both means.
    """
    P, count = _shape(log_weights, count)
    whole, fraction = _expected(log_weights, count)
    u = uniform((P, log_weights.shape[1]), generator, log_weights.device).tolist()
    for p, (row, coins) in enumerate(zip(fraction.tolist(), u, strict=True)):
        up, held, a = [], 0, row[0]
        for j in range(1, len(row)):
            b, coin = row[j], coins[j]
            if a + b < 1:  # one leaves as 0
                a, held = (a + b, held) if coin * (a + b) < a else (a + b, j)
            else:  # one leaves as 1
                leaves = held if coin * (2 - a - b) < 1 - b else j
                up.append(leaves)
                a, held = a + b - 1, held + j - leaves
        if count - int(whole[p].sum()) > len(up):  # the last fraction is 1 up to rounding
            up.append(held)
        whole[p, up] += 1
    return _expand(whole, count)


SCHEMES: dict[str, Scheme] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
    "ssp": ssp,
}
RESAMPLERS = (*SCHEMES, "none")


def resample(
    name: str, log_weights: Tensor, generator: torch.Generator | None = None, share: float = 1.0
) -> Resampled:
    """Resample weights (P, N), all of them or a share.

    Args:
        share: the part of each population that is resampled: the lightest and the heaviest halves of that
            part exchange places, each then with the part's mean weight, and the particles between keep their
            place and weight. Unbiased, since the part is chosen by the weights alone.

    Returns:
        Ancestors, and log-weights of mean weight 1.

    Raises:
        UserError: when the scheme is unknown.
    """
    if name not in SCHEMES:
        raise UserError(f"resample must be one of {', '.join(RESAMPLERS)}, got {name!r}")
    scheme, N = SCHEMES[name], log_weights.shape[1]
    size = min(N, max(1, round(share * N)))
    if size == N:
        return Resampled(scheme(log_weights, generator, None), torch.zeros_like(log_weights))
    order = log_weights.sort(dim=1, stable=True).indices
    part = torch.cat([order[:, : size // 2], order[:, N - (size - size // 2) :]], 1).sort(1).values
    weights = log_weights.gather(1, part)
    chosen = part.gather(1, scheme(weights, generator, None))
    everyone = torch.arange(N, device=log_weights.device).expand_as(log_weights)
    mean = torch.logsumexp(weights, 1, keepdim=True) - math.log(size)
    kept = log_weights.scatter(1, part, mean.expand_as(weights))
    total = torch.logsumexp(log_weights, 1, keepdim=True) - math.log(N)
    return Resampled(everyone.scatter(1, part, chosen), kept - total)


def _shape(log_weights: Tensor, count: int | None) -> tuple[int, int]:
    P, N = log_weights.shape
    return P, N if count is None else count


def _steps(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=torch.float64)


def _invert(log_weights: Tensor, positions: Tensor) -> Tensor:
    """Where positions (P, count) in [0, 1) fall in the cumulative weights.

    The cumulative sum is float64: in float32 it drifts by whole particles at large N.
    """
    cumulative = torch.softmax(log_weights.double(), dim=1).cumsum(1)
    cumulative = cumulative / cumulative[:, -1:]
    found = torch.searchsorted(cumulative, positions.contiguous(), right=True)
    return found.clamp_max(log_weights.shape[1] - 1)


def _expected(log_weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """count * w split into whole numbers (P, N), int64, and fractions; one rounding error off is whole."""
    expected = torch.softmax(log_weights.double(), dim=1) * count
    whole = (expected + 1e-9).floor()
    return whole.long(), (expected - whole).clamp(0, 1)


def _expand(counts: Tensor, count: int) -> Tensor:
    """Ancestors (P, count) from numbers of descendants (P, N)."""
    P, N = counts.shape
    particles = torch.arange(N, device=counts.device).repeat(P)
    return torch.repeat_interleave(particles, counts.reshape(-1)).reshape(P, count)
