"""What a particle filter writes down at each step, and the weighted result that it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.steering.result import History, TiltResult
from fmtt.steering.setup import Start


class Row(NamedTuple):
    """The arrival at time t: :class:`History`'s fields for one step, (P,); ``ancestors`` (P, N).

    Attributes:
        length, discrepancy: of this step alone.
    """

    t: float
    ess: Tensor
    log_z: Tensor
    work_variance: Tensor
    length: Tensor
    discrepancy: Tensor
    resampled: Tensor
    ancestors: Tensor
    strength: Tensor
    mean_reward: Tensor
    best_reward: Tensor
    guidance_ratio: Tensor


def history(rows: Sequence[Row]) -> History:
    """The rows of K steps, stacked and summed up."""
    stacked = {name: torch.stack([getattr(row, name) for row in rows]) for name in Row._fields[1:]}
    return History(
        t=torch.tensor([row.t for row in rows], dtype=torch.float64),
        thermodynamic_length=stacked.pop("length").cumsum(0),
        total_discrepancy=stacked.pop("discrepancy").cumsum(0),
        **stacked,
    )


def weighted(
    start: Start,
    samples: Tensor,
    rewards: Tensor,
    log_weights: Tensor,
    eve: Tensor,
    rows: Sequence[Row],
    law: str,
) -> TiltResult:
    """The result of a filter that ended with ``samples`` (P*N, *D) of ``log_weights`` (P, N)."""
    last, single = rows[-1], start.num_populations == 1
    return TiltResult(
        samples=samples,
        log_weights=log_weights.reshape(-1),
        log_z=last.log_z[0] if single else last.log_z,
        ess=last.ess[0] if single else last.ess,
        rewards=rewards.to(samples.dtype),
        population=start.population,
        eve=eve,
        history=history(rows),
        cost=start.cost,
        base_law=law,
        num_populations=start.num_populations,
    )
