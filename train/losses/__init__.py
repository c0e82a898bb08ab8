"""The objectives by name, and sums of them."""

from collections.abc import Collection, Mapping

import torch

from train.losses.base import FlowMapLoss, LossOutput, PathSample, Times
from train.losses.eulerian import consistency, emd, esd, mean_flow
from train.losses.flow_matching import diagonal, flow_matching
from train.losses.lagrangian import lmd, lsd
from train.losses.semigroup import psd_m, psd_u
from train.losses.terminal import tvm
from train.losses.trajectory import trajectory
from train.losses.weighted_sum import weighted_sum

DIAGONAL = ("flow_matching", "diagonal")
"""Objectives of the velocity alone: they look at s and not at t."""
SEES_DATA = ("flow_matching", "mean_flow", "tvm")
"""Objectives that need no teacher: the data's own velocity is in them."""
ANY_FLOW = ("psd_m", "psd_u")
"""Objectives that every flow satisfies: others must say which flow is wanted."""
TO_THE_END = ("consistency",)
"""Objectives of the jump from s to 1, whatever t."""
MANY_TIMES = ("trajectory",)
"""Objectives of several jumps for every sample, for which s, u and t are only what they are drawn from."""

OBJECTIVES: dict[str, FlowMapLoss] = {
    "flow_matching": flow_matching,
    "diagonal": diagonal,
    "lsd": lsd,
    "lmd": lmd,
    "esd": esd,
    "emd": emd,
    "mean_flow": mean_flow,
    "psd_m": psd_m,
    "psd_u": psd_u,
    # Semigroup distillation: the intermediate time is the sampler's.
    "psd": weighted_sum({"psd_u": 1.0, "diagonal": 1.0}, {"psd_u": psd_u, "diagonal": diagonal}, DIAGONAL),
    "consistency": consistency,
    "tvm": tvm,
    "trajectory": trajectory,
}


def sum_of(terms: Mapping[str, float]) -> FlowMapLoss:
    """The weighted sum of the objectives named in ``terms``; see :func:`weighted_sum`."""
    return weighted_sum(terms, OBJECTIVES, DIAGONAL)


def have_times(names: Collection[str]) -> bool:
    """Whether every sample of a sum of the objectives ``names`` has one s and one t."""
    off, to_the_end = set(names) - set(DIAGONAL), set(names) & set(TO_THE_END)
    return not off & set(MANY_TIMES) and to_the_end in (set(), off)


def times_of(names: Collection[str], times: Times) -> Times | None:
    """The times that a sum of the objectives ``names``, drawn at ``times``, is of; None where samples have
    several."""
    off = set(names) - set(DIAGONAL)
    if not have_times(names):
        return None
    if not off:
        return Times(times.s, times.s, times.s)
    if not off & set(TO_THE_END):
        return times
    end = torch.ones_like(times.t)
    if off != set(names):  # samples with s = t are the diagonal's
        end = torch.where(times.s == times.t, times.t, end)
    return Times(times.s, (times.s + end) / 2, end)


__all__ = [
    "OBJECTIVES",
    "FlowMapLoss",
    "LossOutput",
    "PathSample",
    "Times",
    "have_times",
    "sum_of",
    "times_of",
]
