"""Lagrangian objectives: the map's time derivative is the velocity where it lands."""

from __future__ import annotations

import torch

from fmtt.flow.calculus import average_velocity, partial_t
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square
from train.losses.constant import with_constant


def lsd(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|d/dt X_{s,t}(x_s) - sg b_t(X_{s,t}(x_s))|^2, gradient through the jvp (LSD, arXiv 2505.18825)."""
    landed, d_landed = partial_t(student, path.x_s, times.s, times.t, cond)
    with torch.no_grad():
        target = teacher(landed.detach(), times.t, cond)
    return LossOutput(mean_square(d_landed - target), {"tangent_norm": mean_square(d_landed).mean().detach()})


def lmd(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|u_{s,t} - sg[b_t(X_{s,t}) - (t - s) d/dt u_{s,t}]|^2: LSD without a second-order graph.

    Lagrangian map distillation (arXiv 2406.07507) in its stop-gradient form.
    """
    x, s, t = path.x_s, times.s, times.t
    u, d_u = with_constant(
        student,
        lambda: average_velocity(student, x, s, t, cond, derivative=True),
        lambda: average_velocity(student, x, s, t, cond)[0],
    )
    tangent = expand_like(t - s, u) * d_u
    with torch.no_grad():
        target = teacher(x + expand_like(t - s, u) * u, t, cond) - tangent
    return LossOutput(mean_square(u - target), {"tangent_norm": tangent.square().mean()})
