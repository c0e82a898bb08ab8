"""Objectives on the diagonal s = t: flow matching and its distilled form."""

from __future__ import annotations

import torch

from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square


def flow_matching(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|u_{s,s}(x_s) - dI_s/ds|^2 (flow matching, arXiv 2210.02747; stochastic interpolants, 2303.08797)."""
    return LossOutput(mean_square(student.velocity(path.x_s, times.s, cond) - path.velocity_s), {})


def diagonal(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|u_{s,s}(x_s) - b_s(x_s)|^2: the teacher's velocity without the noise of the data velocity."""
    with torch.no_grad():
        target = teacher(path.x_s, times.s, cond)
    return LossOutput(mean_square(student.velocity(path.x_s, times.s, cond) - target), {})
