"""The objectives by name, and sums of them."""

from collections.abc import Mapping

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


__all__ = ["OBJECTIVES", "FlowMapLoss", "LossOutput", "PathSample", "Times", "sum_of"]
