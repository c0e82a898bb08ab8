"""Solving dx/dt = b_t(x): the adaptive reference that maps are measured against, and fixed Euler steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.tensor import batch_time, expand_like
from fmtt.types import Cond, VelocityField


class Unsolved(UserError, FloatingPointError):
    """No step of the solver is small enough."""


def solve(
    velocity: VelocityField,
    x: Tensor,
    t0: float,
    t1: float,
    cond: Cond | None = None,
    *,
    tol: float = 1e-5,
    times: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Integrate from ``t0`` to ``t1`` with dopri5 (torchdiffeq), relative and absolute tolerance ``tol``.

    The step size is chosen for the batch as a whole, from its root-mean-square error; gradients flow
    through the steps. Times are kept in float64 whatever the dtype of ``x``.

    Args:
        velocity: b_t(x), called as ``velocity(x, t, cond)`` with t of shape (B,).
        x: the state at ``t0``, (B, *D).
        times: (K,) strictly monotonic, from ``t0`` on to at most ``t1``: where the state is wanted.

    Returns:
        The state at ``t1``, (B, *D); with ``times`` the states there, (K, B, *D).

    Raises:
        ValueError: when ``times`` are not monotonic within the interval.
        UserError: when torchdiffeq is not installed.
        Unsolved: when no step is small enough, as with a velocity that is not finite.
    """
    grid = torch.as_tensor([t1] if times is None else times, dtype=torch.float64, device=x.device)
    forward = 1.0 if t1 >= t0 else -1.0
    inside = bool(((grid - t0) * forward >= 0).all() and ((t1 - grid) * forward >= 0).all())
    if not inside or not bool((grid.diff() * forward > 0).all()):
        raise ValueError(f"times must run strictly from {t0} towards {t1}, got {grid.tolist()}")
    leading = len(grid) == 0 or float(grid[0]) != t0
    start = torch.tensor([t0], dtype=torch.float64, device=x.device)
    states = _odeint(velocity, x, torch.cat([start, grid]) if leading else grid, cond, tol)
    states = states[1:] if leading else states
    return states[-1] if times is None else states


def _odeint(velocity: VelocityField, x: Tensor, grid: Tensor, cond: Cond | None, tol: float) -> Tensor:
    """The states (K, B, *D) at ``grid`` (K,), the first of which is ``x``."""
    if len(grid) == 1 or x.shape[0] == 0:
        return x.expand(len(grid), *x.shape)
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError("the reference solver needs torchdiffeq: pip install 'fmtt[evaluate]'") from error

    def derivative(t: Tensor, y: Tensor) -> Tensor:
        return velocity(y, batch_time(t, y), cond)

    # Steps end on the grid: interpolating there costs accuracy, and the last step would pass time 1.
    options = {"step_t": grid}
    try:
        states = odeint(derivative, x, grid, rtol=tol, atol=tol, method="dopri5", options=options)
    except AssertionError as error:
        if "underflow in dt" not in str(error):
            raise
        raise Unsolved(
            f"the ODE cannot be solved to tolerance {tol:g}: use a larger one ({error})"
        ) from error
    return cast(Tensor, states)


def euler(
    velocity: VelocityField, x: Tensor, times: Tensor | Sequence[float], cond: Cond | None = None
) -> Tensor:
    """Explicit Euler steps along ``times``: x <- x + (t' - t) b_t(x).

    Args:
        x: the state at ``times[0]``, (B, *D).
        times: K + 1 times of a grid with K steps, (K + 1,) or per sample (K + 1, B).

    Returns:
        The state at ``times[-1]``, (B, *D).
    """
    grid = torch.as_tensor(times, device=x.device)
    for here, there in zip(grid[:-1], grid[1:], strict=True):
        s, t = batch_time(here, x), batch_time(there, x)
        x = x + expand_like(t - s, x).to(x.dtype) * velocity(x, s, cond)
    return x
