"""Regression on the teacher's own trajectory: jumps between any of its points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from fmtt.flow.calculus import average_velocity
from fmtt.tensor import expand_like, take_cond
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square

LEGS = 24
"""Steps from 0 to 1, a pass of the teacher each; a part of the way takes its share of them. On the clock the
last state of a whole way is then off by 0.002 root mean square; Heun's method with as many passes is off by
0.005. The first step, also of a part, is Euler's."""
CROWDING = 1.25
"""Power by which legs shorten towards t = 1, where the velocity changes fastest."""
JUMPS = 4
"""Jumps per trajectory. Following the teacher costs a pass per leg, which they share."""
TO_THE_END, ON_THE_DIAGONAL = 0.4, 0.1
"""Shares of the jumps that end where the trajectory does, and that have no length: the velocity."""
SIZES = 4
"""Trajectories end after different numbers of legs; the teacher sees a batch of this many sizes at most."""
GOLDEN, SILVER = 0.6180339887, 0.4142135624


class Trajectory(NamedTuple):
    """Points of the teacher's trajectories: times t (B, LEGS + 1) from s to the end, which is repeated,
    states (B, LEGS + 1, *D), and velocities (B, LEGS, *D) at all but the last. What lies beyond a
    trajectory's own number of legs is not filled in."""

    t: Tensor
    states: Tensor
    velocities: Tensor


def shares(times: Times) -> tuple[Tensor, Tensor]:
    """Two numbers in [0, 1) per sample, (B,) each: late digits of its times, which are as good as uniform and
    independent if one of the times is drawn at random.

    All that is drawn at random here is a function of them, so a run resumes exactly.
    """
    s, u, t = (time.double() for time in times)
    first, second = (997 * s + 1361 * u + 1733 * t) % 1, (1409 * s + 1777 * u + 1049 * t) % 1
    return first.to(times.s.dtype), second.to(times.s.dtype)


def time_grid(s: Tensor, t: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Times (B, LEGS + 1) from s to t, and how many legs lead there, (B,); the inner times move with
    ``shift`` in [0, 1]."""
    begin, end = (1 - (1 - time) ** (1 / CROWDING) for time in (s, t))
    legs = (LEGS * (end - begin) - 1e-4).ceil().long().clamp_min(1)
    k = torch.arange(LEGS + 1, device=s.device)
    inner = (k + 0.4 - 0.8 * shift[:, None]) / legs[:, None]
    inside = begin[:, None] + (end - begin)[:, None] * inner
    grid = torch.where(k < legs[:, None], 1 - (1 - inside).clamp_min(0) ** CROWDING, t[:, None])
    return torch.cat([s[:, None], grid[:, 1:]], 1), legs


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
def follow(teacher: VelocityField, x: Tensor, t: Tensor, legs: Tensor, cond: Cond | None) -> Trajectory:
    """The teacher's ODE from x (B, *D) through the first ``legs`` (B,) of the times t (B, K + 1), by the
    Adams-Bashforth method of third order. The velocity at the last time, where it may not be known, is not
    asked for.

    With several processes the teacher is called K times whatever ``legs`` are: those that share its weights
    call it in step.
    """
    B, K = len(x), t.shape[1] - 1
    states, velocities = x[:, None].repeat(1, K + 1, *[1] * (x.ndim - 1)), x.new_zeros(B, K, *x.shape[1:])
    order, size = legs.argsort(descending=True), -(-B // SIZES)
    on_the_way = (legs[:, None] > torch.arange(K, device=x.device)).sum(0).tolist()
    for k, count in enumerate(on_the_way):
        if count == 0 and not (distributed.is_available() and distributed.is_initialized()):
            break
        rows = order[: min(B, max(1, -(-count // size)) * size)]
        column = (legs[rows] - 1).clamp_max(k)
        velocity = teacher(states[rows, column], t[rows, column], take_cond(cond, rows))[:count]
        rows = rows[:count]
        velocities[rows, k] = velocity.to(velocities.dtype)
        step = states[rows, k]
        for back, weight in enumerate(step_weights(t[rows, max(0, k - 2) : k + 2])):
            step = step + expand_like(weight, x) * velocities[rows, k - back]
        states[rows, k + 1] = step.to(states.dtype)
    return Trajectory(t, states, velocities)


def jump_ends(legs: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (JUMPS, B) of the points that jumps lead from and to; equal where they have no length.

    Starts are spread evenly over a trajectory's ``legs``; ends are a low-discrepancy sequence.
    """
    q = torch.arange(JUMPS, device=first.device)[:, None]
    start = torch.minimum((legs * (q + second) / JUMPS).long(), legs - 1)
    kind, length = (7 * first + q * GOLDEN) % 1, (5 * first + 3 * second + q * SILVER) % 1
    end = torch.minimum(start + 1 + (length * (legs - start)).long(), legs)
    end = torch.where(kind < TO_THE_END, legs, end)
    return start, torch.where(kind >= 1 - ON_THE_DIAGONAL, start, end)


def trajectory(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """(1 - a)^2 |u_{a,b}(x_a) - (x_b - x_a) / (b - a)|^2, averaged over jumps a -> b between points of the
    teacher's trajectory from x_s to time t.

    Knowledge distillation (arXiv 2101.02388) of every part of the trajectory instead of the whole: targets
    do not depend on the student, so nothing is bootstrapped. The factor (1 - a)^2 measures the error at the
    endpoint that a straight line would reach. A jump of no length is asked for the teacher's velocity. Jumps
    start at every part of the path alike: where trajectories part, the velocity that the student begins
    with is better than what a few long jumps teach. Part of a trajectory costs about its part of the
    teacher's passes: times of whole ones and of parts mixed put more jumps where trajectories part.
    """
    first, second = shares(times)
    t, legs = time_grid(times.s, times.t, first)
    true = follow(teacher, path.x_s, t, legs, cond)
    B = len(first)
    rows = torch.arange(B, device=first.device)
    start, end = (index.flatten() for index in jump_ends(legs, first, second))
    many = rows.repeat(JUMPS)
    x, a, b = true.states[many, start], true.t[many, start], true.t[many, end]
    gap = expand_like(b - a, x)
    quotient = (true.states[many, end] - x) / torch.where(gap > 0, gap, 1)
    target = torch.where(gap > 0, quotient, true.velocities[many, start])
    repeated = None if cond is None else {k: torch.cat([v] * JUMPS) for k, v in cond.items()}
    u, _ = average_velocity(student, x, a, b, repeated)
    per_jump = ((1 - a).square() * mean_square(u - target)).reshape(JUMPS, B)
    return LossOutput(per_jump.mean(0), {})
