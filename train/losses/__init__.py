"""The objectives by name."""

from train.losses.base import FlowMapLoss, LossOutput, PathSample, Times
from train.losses.flow_matching import diagonal, flow_matching
from train.losses.lagrangian import lmd, lsd
from train.losses.semigroup import psd
from train.losses.trajectory import trajectory

OBJECTIVES: dict[str, FlowMapLoss] = {
    "flow_matching": flow_matching,
    "diagonal": diagonal,
    "lsd": lsd,
    "lmd": lmd,
    "psd": psd,
    "trajectory": trajectory,
}

__all__ = ["OBJECTIVES", "FlowMapLoss", "LossOutput", "PathSample", "Times"]
