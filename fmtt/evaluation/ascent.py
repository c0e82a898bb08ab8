"""Does a look-ahead's reward gradient point the way the true one does?

For a reward r and a look-ahead l_t, two numbers per time: the error of r(l_t(x_t)) against the reward of
the true endpoint, and the cosine between grad_x r(l_t(x)) and the gradient through the exact ODE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation.lookahead import (
    MAP_STEPS,
    LookaheadFn,
    Track,
    Trajectory,
    chunked,
    lookaheads,
    rmse,
    silent,
)
from fmtt.tensor import dot
from fmtt.types import Cond, FlowMap, Reward, VelocityField


class RewardErrors(NamedTuple):
    """Per look-ahead and time: reward RMSE and mean gradient cosine, each with its standard error.

    The cosines are empty where the reward has no gradient.
    """

    t: tuple[float, ...]
    reward_rmse: dict[str, list[float]]
    reward_standard_error: dict[str, list[float]]
    cosine: dict[str, list[float]]
    cosine_standard_error: dict[str, list[float]]


def rk4_step(velocity: VelocityField, x: Tensor, t: float, h: float, cond: Cond | None) -> Tensor:
    """One classical Runge-Kutta step of the ODE from t to t + h."""
    k1 = velocity(x, t, cond)
    k2 = velocity(x + h / 2 * k1, t + h / 2, cond)
    k3 = velocity(x + h / 2 * k2, t + h / 2, cond)
    k4 = velocity(x + h * k3, t + h, cond)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def gradient(reward: Reward, function: LookaheadFn, x: Tensor, t: float, cond: Cond | None) -> Tensor:
    """The gradient of r(l_t(x)) in x, (B, *D)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(reward(function(x, t, cond), cond).sum(), x)[0]


def ode_gradient(
    reward: Reward, velocity: VelocityField, x: Tensor, t: float, cond: Cond | None, *, steps: int
) -> Tensor:
    """The gradient of r(endpoint) through Runge-Kutta steps from t to 1, (B, *D).

    Args:
        steps: of a whole trajectory from 0 to 1; a later start takes proportionally fewer.

    The backward pass recomputes one step at a time, so that memory does not grow with ``steps``.
    """
    count = max(1, round(steps * (1 - t)))
    h = (1 - t) / count
    states = [x.detach()]
    with torch.no_grad():
        for k in range(count):
            states.append(rk4_step(velocity, states[-1], t + k * h, h, cond))
    adjoint = gradient(reward, lambda y, _t, _c: y, states.pop(), 1.0, cond)
    for k in reversed(range(count)):
        with torch.enable_grad():
            start = states.pop().requires_grad_()
            end = rk4_step(velocity, start, t + k * h, h, cond)
        adjoint = torch.autograd.grad(end, start, adjoint)[0]
    return adjoint


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine per sample, (B,); 0 where either gradient vanishes."""
    size = (dot(a, a) * dot(b, b)).sqrt()
    return torch.where(size > 0, dot(a, b) / size, torch.zeros_like(size))


def reward_errors(
    flow_map: FlowMap,
    trajectory: Trajectory,
    reward: Reward,
    *,
    velocity: VelocityField | None = None,
    map_steps: Sequence[int] = MAP_STEPS,
    gradient_samples: int = 32,
    gradient_steps: int = 32,
    chunk_size: int = 64,
    track: Track = silent,
) -> RewardErrors:
    """Measure every look-ahead, and ``none`` (x_t itself), through a reward.

    Args:
        trajectory: from :func:`fmtt.evaluation.lookahead.reference`.
        velocity: of the reference ODE; the flow map's own diagonal if omitted.
        gradient_samples: how many of the samples are spent on gradients; 0 for a reward without one.
        gradient_steps: Runge-Kutta steps of the exact gradient over the whole of [0, 1].
    """
    field = flow_map.velocity if velocity is None else velocity
    named: dict[str, LookaheadFn] = {"none": lambda x, t, cond: x}
    named |= lookaheads(flow_map, velocity=velocity, map_steps=map_steps)
    result = RewardErrors(trajectory.times, *({n: [] for n in named} for _ in range(4)))
    few = trajectory.first(gradient_samples)

    def scored(function: LookaheadFn) -> LookaheadFn:
        return lambda x, t, cond: reward(function(x, t, cond), cond)

    def slope(function: LookaheadFn) -> LookaheadFn:
        return lambda x, t, cond: gradient(reward, function, x, t, cond)

    def exact_slope(x: Tensor, t: float, cond: Cond | None) -> Tensor:
        return ode_gradient(reward, field, x, t, cond, steps=gradient_steps)

    with torch.no_grad():
        truth = chunked(scored(named["none"]), trajectory.endpoint, 1.0, trajectory.cond, chunk_size)
    for k in track(range(len(trajectory.times)), "reward look-ahead"):
        t = trajectory.times[k]
        exact = chunked(exact_slope, few.states[k], t, few.cond, chunk_size) if gradient_samples else None
        for name, function in named.items():
            with torch.no_grad():
                score = chunked(scored(function), trajectory.states[k], t, trajectory.cond, chunk_size)
            value, error = rmse(score[:, None], truth[:, None])
            result.reward_rmse[name].append(value)
            result.reward_standard_error[name].append(error)
            if exact is None:
                continue
            angle = cosine(chunked(slope(function), few.states[k], t, few.cond, chunk_size), exact).double()
            result.cosine[name].append(float(angle.mean()))
            result.cosine_standard_error[name].append(float(angle.std()) / len(angle) ** 0.5)
    if not gradient_samples:
        result.cosine.clear()
        result.cosine_standard_error.clear()
    return result
