"""Regression on the teacher's own trajectory: jumps between any of its points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.flow.calculus import average_velocity
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square

LEGS = 24
"""Steps from s to 1, a pass of the teacher each. On the clock the last state is then off by 0.002 root mean
square; Heun's method with as many passes is off by 0.005."""
CROWDING = 1.25
"""Power by which legs shorten towards t = 1, where the velocity changes fastest."""
JUMPS = 4
"""Jumps per trajectory. Following the teacher costs LEGS of its passes, which they share."""
TO_THE_END, ON_THE_DIAGONAL = 0.4, 0.1
"""Shares of the jumps that end at t = 1, and that have no length: the velocity."""
GOLDEN, SILVER = 0.6180339887, 0.4142135624


class Trajectory(NamedTuple):
    """Points of the teacher's trajectories: times t (B, LEGS + 1) from s to 1, states (B, LEGS + 1, *D), and
    velocities (B, LEGS, *D) at all but the last."""

    t: Tensor
    states: Tensor
    velocities: Tensor


def shares(times: Times) -> tuple[Tensor, Tensor]:
    """Two numbers in [0, 1] per sample, (B,) each: where t lies in [s, 1], and u in [s, t].

    All that is drawn at random here is a function of them, so a run resumes exactly.
    """
    first = (times.t - times.s) / (1 - times.s).clamp_min(1e-6)
    second = (times.u - times.s) / (times.t - times.s).clamp_min(1e-6)
    return first.clamp(0, 1), second.clamp(0, 1)


def time_grid(s: Tensor, shift: Tensor) -> Tensor:
    """Times (B, LEGS + 1) from s to 1; the inner ones move with ``shift`` in [0, 1]."""
    inner = torch.arange(1, LEGS, device=s.device) + 0.4 - 0.8 * shift[:, None]
    ends = s.new_zeros(len(s), 1), s.new_ones(len(s), 1)
    grid = torch.cat([ends[0], inner / LEGS, ends[1]], dim=1)
    return s[:, None] + (1 - s[:, None]) * (1 - (1 - grid) ** CROWDING)


def step_weights(t: Tensor) -> list[Tensor]:
    """How much the last velocities count in the step from t[:, -2] to t[:, -1]: (B,) each, latest first.

    The integral of the polynomial through the velocities at t[:, :-1] (B, 1 to 3): the Adams-Bashforth method
    with steps of any length.
    """
    h, *back = (t[:, -1] - t[:, -2], *(t[:, -2, None] - t[:, :-2]).flip(1).unbind(1))
    if not back:
        return [h]
    a = back[0].clamp_min(1e-12)
    if len(back) == 1:
        return [h + h**2 / (2 * a), -(h**2) / (2 * a)]
    gap = (back[1] - back[0]).clamp_min(1e-12)
    b = a + gap
    last, oldest = h**3 / 3 + b * h**2 / 2, h**3 / 3 + a * h**2 / 2
    return [h + (h**3 / 3 + (a + b) * h**2 / 2) / (a * b), -last / (a * gap), oldest / (b * gap)]


@torch.no_grad()
def follow(teacher: VelocityField, x: Tensor, t: Tensor, cond: Cond | None) -> Trajectory:
    """The teacher's ODE from x (B, *D) through the times t (B, K + 1), by the Adams-Bashforth method of third
    order. The velocity at the last time, where it may not be known, is not asked for."""
    states, velocities = [x], []
    for k in range(t.shape[1] - 1):
        velocities.append(teacher(x, t[:, k], cond))
        weights = step_weights(t[:, max(0, k - 2) : k + 2])
        for weight, velocity in zip(weights, velocities[::-1], strict=False):
            x = x + expand_like(weight, x) * velocity
        states.append(x)
    return Trajectory(t, torch.stack(states, 1), torch.stack(velocities, 1))


def jump_ends(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (JUMPS, B) of the points that jumps lead from and to; equal where they have no length.

    Starts are spread evenly over the legs; ends are a low-discrepancy sequence.
    """
    q = torch.arange(JUMPS, device=first.device)[:, None]
    start = (LEGS * (q + second) / JUMPS).long().clamp_max(LEGS - 1)
    kind, length = (7 * first + q * GOLDEN) % 1, (5 * first + 3 * second + q * SILVER) % 1
    end = start + 1 + (length * (LEGS - start)).long()
    end = torch.where(kind < TO_THE_END, LEGS, end.clamp_max(LEGS))
    return start, torch.where(kind >= 1 - ON_THE_DIAGONAL, start, end)


def trajectory(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """(1 - a)^2 |u_{a,b}(x_a) - (x_b - x_a) / (b - a)|^2, averaged over jumps a -> b between points of the
    teacher's trajectory from x_s.

    Knowledge distillation (arXiv 2101.02388) of every part of the trajectory instead of the whole: targets
    do not depend on the student, so nothing is bootstrapped. The factor (1 - a)^2 measures the error at the
    endpoint that a straight line would reach. A jump of no length is asked for the teacher's velocity. Jumps
    start at every part of the path alike: where trajectories part, the velocity that the student begins
    with is better than what a few long jumps teach.
    """
    first, second = shares(times)
    true = follow(teacher, path.x_s, time_grid(times.s, first), cond)
    B = len(first)
    rows = torch.arange(B, device=first.device)
    start, end = (index.flatten() for index in jump_ends(first, second))
    many = rows.repeat(JUMPS)
    x, a, b = true.states[many, start], true.t[many, start], true.t[many, end]
    gap = expand_like(b - a, x)
    quotient = (true.states[many, end] - x) / torch.where(gap > 0, gap, 1)
    target = torch.where(gap > 0, quotient, true.velocities[many, start])
    repeated = None if cond is None else {k: torch.cat([v] * JUMPS) for k, v in cond.items()}
    u, _ = average_velocity(student, x, a, b, repeated)
    per_jump = ((1 - a).square() * mean_square(u - target)).reshape(JUMPS, B)
    return LossOutput(per_jump.mean(0), {})
