"""Where on the path, and how far ahead, an objective is evaluated: samplers of (s, u, t)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from train.losses.base import Times

DISTRIBUTIONS = ("uniform", "logit_normal", "ayf", "lookahead")
MIDPOINTS = ("middle", "uniform")


def from_density(uniform: Tensor, density: Sequence[float]) -> Tensor:
    """Quantiles (B,) at ``uniform`` (B,) of the law on [0, 1] whose density is ``density`` on equal parts."""
    weights = torch.tensor(density, device=uniform.device, dtype=torch.float64)
    edges = torch.cat([weights.new_zeros(1), weights.cumsum(0)]) / weights.sum()
    rank = uniform.double()
    part = (torch.searchsorted(edges, rank, right=True) - 1).clamp(0, len(weights) - 1)
    low, high = edges[part], edges[part + 1]
    inside = ((rank - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return ((part + inside) / len(weights)).to(uniform.dtype)


class TimeSampler(NamedTuple):
    """Draws s, then t in [s, 1]: a share on the diagonal t = s, a share from s to 1, a share from 0 to 1, the
    rest between.

    Densities are those of the rest; on the diagonal s has the law stated.

    Args:
        distribution:
            ``uniform``: density 2 on s < t (the order statistics of two uniform draws); on the diagonal s
            is uniform.
            ``logit_normal``: logit s ~ N(mean, std^2), t given s uniform in [s, 1], so the density is
            p(s) / (1 - s); on the diagonal s has density p too.
            ``ayf``: logit (t - s) ~ N(mean, std^2), and s given d = t - s uniform in [0, 1 - d], so the
            density is p(d) / (1 - d): the gaps are chosen and their place is not (arXiv 2506.14603,
            algorithm 1); on the diagonal s is uniform.
            ``lookahead``: s has the density ``s_density``, t given s is uniform in [s, 1], and ``endpoint``
            is the share with t = 1: for maps that are to tell where a trajectory ends; on the diagonal s
            has that density too.
        mean, std: of the normal law.
        diagonal: share of samples with t = s.
        endpoint: share of samples from s to t = 1 (the look-ahead), besides ``whole``.
        whole: share of samples from s = 0 to t = 1, for objectives that follow the trajectory between.
        midpoint: ``u`` half-way between s and t, or uniform between them.
        s_density: weights of equal parts of [0, 1], on each of which the density is constant.
        gap_start, gap_steps: a curriculum: gaps t - s, those to t = 1 among them, are multiplied by g,
            which grows linearly from ``gap_start`` to 1 over ``gap_steps`` steps. No gap exceeds g.
    """

    distribution: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    diagonal: float = 0.0
    endpoint: float = 0.0
    whole: float = 0.0
    midpoint: str = "middle"
    s_density: Sequence[float] = (1.0,)
    gap_start: float = 1.0
    gap_steps: int = 0

    def largest_gap(self, step: int) -> float:
        """g after ``step`` optimizer steps."""
        if self.gap_steps == 0:
            return 1.0
        return self.gap_start + (1 - self.gap_start) * min(1.0, step / self.gap_steps)

    def sample(
        self,
        batch: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        step: int = 0,
    ) -> Times:
        """Times with fields of shape (batch,), float32, as after ``step`` optimizer steps."""

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator, device=device)

        a, b = uniform(), uniform()
        on_diagonal_s = a
        if self.distribution == "uniform":
            s, t = torch.minimum(a, b), torch.maximum(a, b)
        elif self.distribution == "lookahead":
            s = on_diagonal_s = from_density(b, self.s_density)
            t = s + (1 - s) * a
        else:
            normal = torch.randn(batch, generator=generator, device=device)
            drawn = torch.sigmoid(self.mean + self.std * normal)
            if self.distribution == "ayf":
                s = (1 - drawn) * b
                t = s + drawn
            else:
                s = on_diagonal_s = drawn
                t = s + (1 - s) * a
        kind, fraction = uniform(), uniform()
        t = torch.where(kind < self.endpoint, torch.ones_like(t), t)
        g = self.largest_gap(step)
        if g < 1:
            t = s + g * (t - s)
        whole = (kind >= self.endpoint) & (kind < self.endpoint + self.whole)
        s, t = torch.where(whole, 0, s), torch.where(whole, 1, t)
        on_diagonal = kind >= 1 - self.diagonal
        s = torch.where(on_diagonal, on_diagonal_s, s)
        t = torch.where(on_diagonal, s, torch.maximum(s, t)).clamp_max(1)
        share = torch.full_like(s, 0.5) if self.midpoint == "middle" else fraction
        return Times(s, torch.minimum(s + share * (t - s), t), t)
