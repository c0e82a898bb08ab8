"""Eulerian objectives: the landing point does not change as the start moves along its own trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.flow.calculus import average_velocity, average_velocity_eulerian, eulerian_derivative
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square
from train.losses.constant import with_constant


def esd(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|d/ds X_{s,t}(x_s) + sg(grad X_{s,t} . b_s)|^2: no gradient through grad X (ESD, arXiv 2505.18825)."""
    x, (s, _, t) = path.x_s, times
    _, d_s = eulerian_derivative(student, x, s, t, cond, velocity=torch.zeros_like(x))
    with torch.no_grad():
        velocity = teacher(x, s, cond)
        _, total = eulerian_derivative(student, x, s, t, cond, velocity=velocity)
    # The value is the total derivative; its spatial part is held constant.
    residual = total + (d_s - d_s.detach())
    return LossOutput(mean_square(residual), {"tangent_norm": mean_square(total).mean()})


def along_velocity(
    student: FlowMap, path: PathSample, times: Times, velocity: Tensor, cond: Cond | None
) -> LossOutput:
    """|u_{s,t} - sg[v + (t - s) (d/ds u_{s,t} + grad u_{s,t} . v)]|^2, v (B, *D) a velocity at x_s."""
    s, _, t = times
    u, d_u = with_constant(
        student,
        lambda: average_velocity_eulerian(student, path.x_s, s, t, velocity, cond),
        lambda: average_velocity(student, path.x_s, s, t, cond)[0],
    )
    tangent = expand_like(t - s, u) * d_u
    return LossOutput(mean_square(u - velocity - tangent), {"tangent_norm": mean_square(tangent).mean()})


def emd(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|u_{s,t} - sg[b_s + (t - s) d/ds u_{s,t}]|^2, d/ds the total derivative along the teacher's velocity.

    Eulerian map distillation (arXiv 2406.07507) in its stop-gradient form, whose gradient times |t - s| is
    AYF's (arXiv 2506.14603); AYF also ramps the derivative term, see train.weighting.Ramp.
    """
    with torch.no_grad():
        velocity = teacher(path.x_s, times.s, cond)
    return along_velocity(student, path, times, velocity, cond)


def mean_flow(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """:func:`emd` with the data velocity dI_s/ds in place of b_s: no teacher (MeanFlow, arXiv 2505.13447).

    The target is linear in the velocity, so given x_s its mean is the teacher's target.
    """
    return along_velocity(student, path, times, path.velocity_s, cond)


def consistency(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """:func:`emd` at t = 1, whatever ``times.t``: the look-ahead X_{s,1} alone.

    Continuous-time consistency distillation (arXiv 2303.01469, 2410.11081) on the average velocity.
    """
    end = torch.ones_like(times.t)
    return emd(student, teacher, path, Times(times.s, (times.s + end) / 2, end), cond)
