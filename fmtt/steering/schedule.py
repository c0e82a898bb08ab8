"""What is fixed before the first step: the time grid, the reward's strength lambda(t), noise, drift.

The noise of a step is evaluated at the step's end: eps_k = noise * alpha(t_{k+1}). It vanishes in the last
step, so finished samples carry no residual noise, and eps_k times the score stays finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.interpolant import Interpolant
from fmtt.steering.adaptive import Adaptive

Scalar = Callable[[float], float]
"""A function of time, called with one float."""


class Plan(NamedTuple):
    """Constants of a run with K steps.

    Attributes:
        times: K + 1 increasing times that end at 1.
        strengths: lambda at those times, K + 1 floats from 0 to 1.
        noises: eps of each step, K floats.
        adaptive: how lambda is chosen online; ``strengths`` then only say where it starts and ends.
    """

    times: tuple[float, ...]
    strengths: tuple[float, ...]
    noises: tuple[float, ...]
    adaptive: Adaptive | None = None

    @property
    def num_steps(self) -> int:
        return len(self.noises)


def build(
    num_steps: int,
    interpolant: Interpolant,
    *,
    times: str | Scalar | Tensor = "uniform",
    schedule: str | Scalar | Adaptive = "linear",
    noise: float | Scalar = 1.0,
    t_start: float = 0.0,
) -> Plan:
    """Check and evaluate the three schedules.

    Raises:
        UserError: naming the argument that is wrong.
    """
    grid = time_grid(num_steps, times, t_start)
    adaptive = _adaptive(schedule)
    fixed = "linear" if isinstance(schedule, Adaptive) or adaptive else schedule
    return Plan(grid, strengths(fixed, grid), noises(noise, grid, interpolant), adaptive)


def time_grid(
    num_steps: int, times: str | Scalar | Tensor = "uniform", t_start: float = 0.0
) -> tuple[float, ...]:
    """K + 1 increasing times from ``t_start`` to 1.

    Args:
        times: ``"uniform"``; ``"shifted:S"``, u / (u + S (1 - u)) of a uniform u, the usual shift of
            flow models (S > 1 spends more steps on the noisy end, S < 1 on the clean one); a callable that
            bends [0, 1] onto itself; or the K + 1 times themselves, which then decide the number of steps.
    """
    if not 0 <= t_start < 1:
        raise UserError(f"t_start must lie in [0, 1), got {t_start}")
    if isinstance(times, Tensor | list | tuple):
        grid = [float(t) for t in times]
    else:
        if num_steps < 1:
            raise UserError(f"num_steps must be at least 1, got {num_steps}")
        unit = [k / num_steps for k in range(num_steps + 1)]
        if callable(times):
            unit = [float(times(u)) for u in unit]
        elif (shift := _number(times, "shifted")) is not None and shift > 0:
            unit = [u / (u + shift * (1 - u)) for u in unit]
        elif times != "uniform":
            raise UserError(
                f"times must be 'uniform', 'shifted:S' with S > 0, a callable or a tensor, got {times!r}"
            )
        grid = [t_start + (1 - t_start) * u for u in unit]
    increasing = all(a < b for a, b in zip(grid, grid[1:], strict=False))
    ends = math.isclose(grid[0], t_start, abs_tol=1e-6) and math.isclose(grid[-1], 1, abs_tol=1e-6)
    if len(grid) < 2 or not (increasing and ends):
        raise UserError(f"times must increase from t_start={t_start:g} to 1")
    return (float(t_start), *grid[1:-1], 1.0)


def strengths(schedule: str | Scalar, grid: tuple[float, ...]) -> tuple[float, ...]:
    """lambda at the times of ``grid``: 0 at its start and 1 at its end.

    Args:
        schedule: ``"linear"``; ``"ramp:T"``, 0 until time T and linear from there; or a callable.
    """
    if callable(schedule):
        values = [float(schedule(t)) for t in grid]
        fits = math.isclose(values[0], 0, abs_tol=1e-6) and math.isclose(values[-1], 1, abs_tol=1e-6)
        if not fits or not all(math.isfinite(v) for v in values):
            raise UserError(
                f"schedule must run from 0 at t={grid[0]:g} to 1 at t=1, got {values[0]:g} and {values[-1]:g}"
            )
        return (0.0, *values[1:-1], 1.0)
    if schedule == "linear":
        return tuple((t - grid[0]) / (1 - grid[0]) for t in grid)
    begin = _number(schedule, "ramp")
    if begin is not None and 0 <= begin < 1:
        begin = max(begin, grid[0])
        return tuple(max(0.0, t - begin) / (1 - begin) for t in grid)
    raise UserError(
        "schedule must be 'linear', 'ramp:T' with T from 0 to 1, 'adaptive', 'adaptive:CESS' or a callable, "
        f"got {schedule!r}"
    )


def drifts(chi: float | Scalar, grid: tuple[float, ...]) -> tuple[float, ...]:
    """chi of each step, evaluated at its start: K floats."""
    values = [float(chi(t)) if callable(chi) else float(chi) for t in grid[:-1]]
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise UserError("chi must be finite and not negative at every step")
    return tuple(values)


def _adaptive(schedule: str | Scalar | Adaptive) -> Adaptive | None:
    """What "adaptive" or "adaptive:CESS" ask for; None for a schedule that is fixed."""
    if isinstance(schedule, str):
        if schedule != "adaptive" and _number(schedule, "adaptive") is None:
            return None
        schedule = Adaptive(_number(schedule, "adaptive"))
    if not isinstance(schedule, Adaptive):
        return None
    if schedule.target is not None and not 0 < schedule.target < 1:
        raise UserError(f"the conditional ESS of an adaptive schedule must lie in (0, 1): {schedule.target}")
    return schedule


def _number(text: object, name: str) -> float | None:
    """X of ``"name:X"``; None for anything else."""
    head, _, tail = text.partition(":") if isinstance(text, str) else ("", "", "")
    try:
        return float(tail) if head == name else None
    except ValueError:
        return None


def noises(noise: float | Scalar, grid: tuple[float, ...], interpolant: Interpolant) -> tuple[float, ...]:
    """eps of each step, evaluated at the step's end; a callable eps(1) > 0 leaves noise in the samples."""
    if callable(noise):
        values = [float(noise(t)) for t in grid[1:]]
    else:
        ends = torch.tensor(grid[1:], dtype=torch.float64)
        values = [float(noise) * a for a in interpolant.alpha(ends).tolist()]
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise UserError("noise must be finite and not negative at every step")
    return tuple(values)
