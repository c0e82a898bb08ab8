"""How different the particles of a population are: by their ancestry, and by their distance."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct_ancestors(eve: Tensor, num_populations: int) -> Tensor:
    """How many initial particles have descendants: eve (P*N,) to (P,)."""
    return torch.tensor([len(row.unique()) for row in eve.reshape(num_populations, -1)])


def mean_pairwise_distance(samples: Tensor, num_populations: int) -> Tensor:
    """Mean root-mean-square difference per coordinate over pairs of samples (P*N, *D), float64 (P,).

    0 for a population of copies, nan for one of a single particle.
    """
    rows = samples.reshape(num_populations, -1, samples[0].numel()).double()  # (P, N, d)
    return torch.stack([torch.pdist(row).mean() for row in rows]) / rows.shape[2] ** 0.5
