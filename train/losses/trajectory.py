"""Regression on the teacher's own trajectory: every jump between four of its points."""

from __future__ import annotations

from itertools import combinations, pairwise

import torch
from torch import Tensor

from fmtt.flow.calculus import average_velocity
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square

LEGS = ((3, 1.0), (3, 1.0), (5, 2.0))
"""Heun steps of s -> u -> t -> 1, and the power by which they shorten towards a leg's end: near t = 1 the
velocity changes fastest. On the clock the last state is then off by 0.006 root mean square."""
CHAIN_WEIGHT = 0.5
SHORTEST = 1e-3
"""Jumps shorter than this are given the velocity itself: their difference quotient would be rounding."""


def heun(
    teacher: VelocityField,
    x: Tensor,
    start: Tensor,
    end: Tensor,
    cond: Cond | None,
    *,
    steps: int,
    power: float,
) -> tuple[Tensor, Tensor]:
    """(state at ``end``, velocity at ``start``) of the teacher's ODE, both (B, *D); times (B,).

    A step that ends at t = 1 is an Euler step: there the velocity is not known.
    """
    grid = [end - (end - start) * (1 - k / steps) ** power for k in range(steps + 1)]
    first = velocity = teacher(x, start, cond)
    for k, (a, b) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        velocity = first if k == 0 else teacher(x, a, cond)
        h = expand_like(b - a, x)
        guess, inside = x + h * velocity, b < 1
        if bool(inside.any()):
            corrected = x + h / 2 * (velocity + teacher(guess, b, cond))
            guess = torch.where(expand_like(inside, x), corrected, guess)
        x = guess
    return x, first


def trajectory(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """(1 - a)^2 |u_{a,b}(x_a) - (x_b - x_a) / (b - a)|^2, averaged over jumps a -> b among s <= u <= t <= 1,
    plus |X_{t,1} X_{u,t} X_{s,u}(x_s) - x_1|^2 and |X_{t,1} X_{u,t}(x_u) - x_1|^2.

    x_u, x_t, x_1 solve the teacher's ODE from x_s. Knowledge distillation (arXiv 2101.02388) of all
    jumps instead of the whole one: targets do not depend on the student, so nothing is bootstrapped.
    The factor (1 - a)^2 measures the error at the endpoint that a straight line would reach. The chains are
    differentiated as a whole: an early jump's error grows along the rest of the trajectory, which no jump
    taken alone shows, and a look-ahead of several steps is such a chain.
    """
    x = [path.x_s]
    at = [*times, torch.ones_like(times.s)]
    velocity = []
    with torch.no_grad():
        for k, (steps, power) in enumerate(LEGS):
            state, b = heun(teacher, x[-1], at[k], at[k + 1], cond, steps=steps, power=power)
            x.append(state)
            velocity.append(b)
    jumps = list(combinations(range(4), 2))
    starts, a = (torch.cat([values[i] for i, _ in jumps]) for values in (x, at))
    ends, b = (torch.cat([values[j] for _, j in jumps]) for values in (x, at))
    gap = expand_like(b - a, starts)
    tangents = torch.cat([velocity[i] for i, _ in jumps])
    target = torch.where(gap > SHORTEST, (ends - starts) / gap.clamp_min(SHORTEST), tangents)
    repeated = None if cond is None else {k: torch.cat([v] * len(jumps)) for k, v in cond.items()}
    u, _ = average_velocity(student, starts, a, b, repeated)
    per_jump = ((1 - a).square() * mean_square(u - target)).reshape(len(jumps), -1)
    chains = torch.stack([mean_square(chain(student, x[k], at[k:], cond) - x[-1]) for k in (0, 1)])
    logs = {"loss_jumps": per_jump.mean().detach(), "loss_chains": chains.mean().detach()}
    return LossOutput(per_jump.mean(0) + CHAIN_WEIGHT * chains.mean(0), logs)


def chain(student: FlowMap, x: Tensor, times: list[Tensor], cond: Cond | None) -> Tensor:
    """The student's jumps through all of ``times``, one after the other, from x (B, *D)."""
    for a, b in pairwise(times):
        u, _ = average_velocity(student, x, a, b, cond)
        x = x + expand_like(b - a, x) * u
    return x
