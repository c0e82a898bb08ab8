"""Derivatives of a flow map in its times: each function returns (value, derivative).

They are taken by forward-mode AD unless :func:`fmtt.flow.derivative.using` names another backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fmtt.flow.derivative import ForwardMode, Tensors, differentiate
from fmtt.tensor import batch_time, expand_like
from fmtt.types import Cond, FlowMap, Time


def jvp(f: Callable[..., Tensor], primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    """(f, directional derivative of f) by forward-mode AD, whatever :func:`using` says."""
    return ForwardMode()(f, primals, tangents)


@runtime_checkable
class HasAverageVelocity(Protocol):
    """A flow map that gives u_{s,t}(x) itself, also at s = t."""

    def average_velocity(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor: ...


def landing(flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
    """X_{s,t}(x), shape (B, *D), where the map allows it also for t a little below s: finite differences
    look there."""
    if isinstance(flow_map, HasAverageVelocity):
        return x + expand_like(t - s, x).to(x.dtype) * flow_map.average_velocity(x, s, t, cond)
    return flow_map(x, s, t, cond)


def partial_t(
    flow_map: FlowMap, x: Tensor, s: Time, t: Time, cond: Cond | None = None
) -> tuple[Tensor, Tensor]:
    """(X_{s,t}(x), its derivative in t), both (B, *D): the left side of the Lagrangian identity."""
    s, t = batch_time(s, x), batch_time(t, x)
    return differentiate(lambda t_: landing(flow_map, x, s, t_, cond), (t,), (torch.ones_like(t),), s, t)


def eulerian_derivative(
    flow_map: FlowMap,
    x: Tensor,
    s: Time,
    t: Time,
    cond: Cond | None = None,
    velocity: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(X_{s,t}(x), d/ds X + grad X . b_s), both (B, *D); the second is zero for an exact map.

    Args:
        velocity: b_s(x); the map's own diagonal if omitted.
    """
    s, t = batch_time(s, x), batch_time(t, x)
    b = flow_map.velocity(x, s, cond) if velocity is None else velocity
    return differentiate(
        lambda x_, s_: landing(flow_map, x_, s_, t, cond), (x, s), (b, torch.ones_like(s)), s, t
    )


def average_velocity(
    flow_map: FlowMap,
    x: Tensor,
    s: Tensor,
    t: Tensor,
    cond: Cond | None = None,
    *,
    derivative: bool = False,
) -> tuple[Tensor, Tensor]:
    """(u_{s,t}(x), its derivative in t or zeros), both (B, *D), with X_{s,t}(x) = x + (t - s) u.

    A map that has no ``average_velocity`` of its own gets it from X, where s < t, and from its velocity,
    where s = t; the derivative then needs s < t.
    """

    def u(t_: Tensor) -> Tensor:
        if isinstance(flow_map, HasAverageVelocity):
            return flow_map.average_velocity(x, s, t_, cond)
        return (flow_map(x, s, t_, cond) - x) / expand_like(t_ - s, x)

    if derivative:
        return differentiate(u, (t,), (torch.ones_like(t),), s, t)
    on_diagonal = expand_like(s == t, x)
    if isinstance(flow_map, HasAverageVelocity) or not bool(on_diagonal.any()):
        value = u(t)
    else:
        gap = torch.where(on_diagonal, 1, expand_like(t - s, x))
        value = torch.where(on_diagonal, flow_map.velocity(x, s, cond), (flow_map(x, s, t, cond) - x) / gap)
    return value, torch.zeros_like(value)


def average_velocity_eulerian(
    flow_map: FlowMap, x: Tensor, s: Tensor, t: Tensor, velocity: Tensor, cond: Cond | None = None
) -> tuple[Tensor, Tensor]:
    """(u_{s,t}(x), d/ds u + grad u . velocity), both (B, *D): how u changes as x moves with ``velocity``.

    A map that has no ``average_velocity`` of its own gets it from X, which needs s < t.
    """

    def u(x_: Tensor, s_: Tensor) -> Tensor:
        if isinstance(flow_map, HasAverageVelocity):
            return flow_map.average_velocity(x_, s_, t, cond)
        return (flow_map(x_, s_, t, cond) - x_) / expand_like(t - s_, x_)

    return differentiate(u, (x, s), (velocity, torch.ones_like(s)), s, t)
