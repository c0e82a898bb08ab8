"""A flow map from its velocity by fixed Runge-Kutta steps, differentiable without storing the steps.

Derivatives follow from the flow's own identities: d/dt X = b_t(X), d/ds X = -grad X . b_s(x), and
grad X from the variational equation dv/dt = grad b . v. Backward integrates it from t to s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK = 8192
"""Particles integrated together: small enough for a processor's cache."""


class SymmetricField(Protocol):
    """A velocity field whose Jacobian is symmetric, with particles in the last dimension."""

    def velocity_and_jvp(
        self, x: Tensor, t: Tensor, v: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


def runge_kutta(f: Callable[[Tensor, Tensor], Tensor], y: Tensor, s: Tensor, t: Tensor, steps: int) -> Tensor:
    """Integrate dy/dt = f(y, t) from s to t by ``steps`` classical fourth-order steps.

    Args:
        y: (..., B). s, t: (B,) or (1,), each sample with its own interval.
    """
    h = (t - s) / steps
    for i in range(steps):
        here = s + i * h
        k1 = f(y, here)
        k2 = f(y + h / 2 * k1, here + h / 2)
        k3 = f(y + h / 2 * k2, here + h / 2)
        k4 = f(y + h * k3, here + h)
        y = y + h / 6 * (k1 + 2 * (k2 + k3) + k4)
    return y


def _transport(
    field: SymmetricField, x: Tensor, v: Tensor | None, s: Tensor, t: Tensor, steps: int
) -> tuple[Tensor, Tensor | None]:
    """Carry x (B, d) and a tangent v (B, d) from s to t."""
    if len(x) == 0:
        return x.clone(), v
    steps = max(1, math.ceil(steps * float((t - s).detach().abs().max())))
    # With one time for all particles the coefficients are computed once. Not where a graph is
    # recorded: the derivative in a time belongs to its own sample.
    shared = not torch.is_grad_enabled() and bool((s == s[0]).all() and (t == t[0]).all())

    def velocity(y: Tensor, time: Tensor) -> Tensor:
        return field.velocity_and_jvp(y, time)[0]

    def velocity_and_tangent(y: Tensor, time: Tensor) -> Tensor:
        b, jvp = field.velocity_and_jvp(y[0], time, y[1])
        assert jvp is not None
        return torch.stack([b, jvp])

    parts = []
    for first in range(0, len(x), CHUNK):
        rows = slice(first, first + CHUNK)
        start, end = (s[:1], t[:1]) if shared else (s[rows], t[rows])
        y = x[rows].mT  # (d, B), or (2, d, B) with the tangent
        if v is None:
            parts.append(runge_kutta(velocity, y.contiguous(), start, end, steps))
        else:
            parts.append(runge_kutta(velocity_and_tangent, torch.stack([y, v[rows].mT]), start, end, steps))
    out = torch.cat(parts, dim=-1).mT
    return (out, None) if v is None else (out[0], out[1])


def _carry(field: SymmetricField, x: Tensor, v: Tensor, s: Tensor, t: Tensor, steps: int) -> Tensor:
    """grad X_{s,t}(x) times v, (B, d)."""
    tangent = _transport(field, x, v, s, t, steps)[1]
    assert tangent is not None
    return tangent


class _Flow(torch.autograd.Function):
    """X_{s,t}(x) with its derivatives in both directions, of any order in reverse mode."""

    @staticmethod
    def forward(field: SymmetricField, steps: int, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return _transport(field, x, None, s, t, steps)[0].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.field, ctx.steps, x, s, t = inputs
        ctx.save_for_backward(x, s, t, output)
        ctx.save_for_forward(x, s, t, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, s, t, y = ctx.saved_tensors
        (gradient,) = gradients
        field: SymmetricField = ctx.field
        grad_x = _carry(_Adjoint(field), y, gradient, t, s, ctx.steps)
        grad_s = grad_t = None
        if ctx.needs_input_grad[3]:
            grad_s = -(grad_x * field.velocity_and_jvp(x.mT, s)[0].mT).sum(1)
        if ctx.needs_input_grad[4]:
            grad_t = (gradient * field.velocity_and_jvp(y.mT, t)[0].mT).sum(1)
        return None, None, grad_x, grad_s, grad_t

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, s, t, y = ctx.saved_tensors
        _, _, x_tangent, s_tangent, t_tangent = tangents
        field: SymmetricField = ctx.field
        v = torch.zeros_like(x) if x_tangent is None else x_tangent
        if s_tangent is not None:
            v = v - field.velocity_and_jvp(x.mT, s)[0].mT * s_tangent[:, None]
        out = _carry(field, x, v, s, t, ctx.steps)
        if t_tangent is not None:
            out = out + field.velocity_and_jvp(y.mT, t)[0].mT * t_tangent[:, None]
        return out


class _Adjoint:
    """The field as a cotangent sees it: p' = -grad b . p along the same trajectory.

    p . v is constant for every tangent v, so that carrying p from t back to s applies (grad X)^T.
    """

    def __init__(self, field: SymmetricField) -> None:
        self.field = field

    def velocity_and_jvp(self, x: Tensor, t: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        b, jvp = self.field.velocity_and_jvp(x, t, v)
        return b, None if jvp is None else -jvp


def integrate_flow(field: SymmetricField, x: Tensor, s: Tensor, t: Tensor, steps: int) -> Tensor:
    """X_{s,t}(x) of ``field`` for x (B, d), s and t (B,); ``steps`` fourth-order steps per unit of time."""
    out = _Flow.apply(field, steps, x, s, t)
    assert isinstance(out, Tensor)
    return out
