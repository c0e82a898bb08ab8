"""Look-ahead accuracy, measured without data.

x_t lies on the reference ODE's trajectory from x_0 ~ N(0, I), and every look-ahead l_t(x_t) is compared
with the end of that trajectory. :func:`reference` pays for the trajectories once; any number of maps
are measured on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow import ode
from fmtt.steering.lookahead import DenoiserLookahead, FlowMapLookahead, Lookahead
from fmtt.tensor import expanded_time, take_cond
from fmtt.types import Cond, FlowMap, VelocityField

TIMES = tuple(k / 10 for k in range(10))
MAP_STEPS = (1, 2, 4)
MAX_TEACHER_STEPS = 64

Track = Callable[[Sequence[int], str], Iterable[int]]
"""``track(items, label)`` yields the items, showing progress."""

LookaheadFn = Callable[[Tensor, float, Cond | None], Tensor]
"""``lookahead(x, t, cond)``: states (B, *D) at time t to predicted endpoints (B, *D)."""


class Trajectory(NamedTuple):
    """Reference trajectories: times (K,), states (K, B, *D), their ends at time 1 (B, *D), conditions."""

    times: tuple[float, ...]
    states: Tensor
    endpoint: Tensor
    cond: Cond | None = None

    def first(self, n: int) -> Trajectory:
        """The same trajectories, the first ``n`` samples only."""
        keep = slice(0, n)
        return Trajectory(self.times, self.states[:, keep], self.endpoint[keep], take_cond(self.cond, keep))


class LookaheadErrors(NamedTuple):
    """RMSE over samples and coordinates, and its standard error, per look-ahead and time."""

    t: tuple[float, ...]
    rmse: dict[str, list[float]]
    standard_error: dict[str, list[float]]


def silent(items: Sequence[int], label: str) -> Iterable[int]:
    """The :data:`Track` that shows nothing."""
    return items


@torch.no_grad()
def reference(
    velocity: VelocityField,
    num_samples: int,
    data_shape: Sequence[int],
    *,
    times: Sequence[float] = TIMES,
    cond: Cond | None = None,
    tol: float = 1e-5,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk_size: int = 256,
    track: Track = silent,
) -> Trajectory:
    """Solve the probability-flow ODE from noise, adaptively, and keep its states on a time grid.

    Args:
        velocity: b_t(x), the teacher's or a map's own diagonal.
        times: K times in [0, 1), increasing.
        cond: conditions of ``num_samples`` rows.
        tol: relative and absolute tolerance per step.
        chunk_size: samples solved together; they share the adaptive steps.

    Returns:
        Trajectories of ``num_samples`` samples.
    """
    times = tuple(float(t) for t in times)
    if not times or list(times) != sorted(set(times)) or times[0] < 0 or times[-1] >= 1:
        raise UserError(f"times must increase within [0, 1), got {list(times)}")
    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1, got {num_samples}")
    x0 = torch.randn(num_samples, *data_shape, generator=generator, device=device, dtype=dtype)
    grid = (*times, 1.0)
    parts = []
    for first in track(range(0, num_samples, chunk_size), "reference ODE"):
        rows = slice(first, first + chunk_size)
        parts.append(ode.solve(velocity, x0[rows], 0.0, 1.0, take_cond(cond, rows), tol=tol, times=grid))
    states = torch.cat(parts, dim=1)  # (K + 1, B, *D)
    return Trajectory(times, states[:-1], states[-1], cond)


def bind(lookahead: Lookahead, velocity: VelocityField) -> LookaheadFn:
    """A steering look-ahead over ``velocity`` as a plain function of (x, t, cond)."""

    def function(x: Tensor, t: float, cond: Cond | None) -> Tensor:
        time = expanded_time(t, x)
        return lookahead(x, time, cond, velocity(x, time, cond) if lookahead.uses_velocity else None)

    return function


def lookaheads(
    flow_map: FlowMap, *, velocity: VelocityField | None = None, map_steps: Sequence[int] = MAP_STEPS
) -> dict[str, LookaheadFn]:
    """The measured look-aheads by name: ``denoiser``, ``map_1``, ``map_2``, ``map_4``.

    Args:
        velocity: whose denoiser; the flow map's own diagonal if omitted.
    """
    field = flow_map.velocity if velocity is None else velocity
    named = {"denoiser": bind(DenoiserLookahead(flow_map.interpolant), field)}
    return named | {f"map_{k}": bind(FlowMapLookahead(flow_map, k), field) for k in map_steps}


def chunked(function: LookaheadFn, x: Tensor, t: float, cond: Cond | None, size: int) -> Tensor:
    """Apply a look-ahead to (B, *D) at most ``size`` samples at a time."""
    rows = [slice(i, i + size) for i in range(0, len(x), size)]
    return torch.cat([function(x[r], t, take_cond(cond, r)) for r in rows])


def rmse(prediction: Tensor, truth: Tensor) -> tuple[float, float]:
    """(root mean square error over samples and coordinates, its standard error over samples)."""
    per_sample = (prediction - truth).double().reshape(len(truth), -1).square().mean(1)  # (B,)
    value = float(per_sample.mean().sqrt())
    if len(truth) < 2 or value == 0:
        return value, 0.0 if value == 0 else float("nan")
    return value, float(per_sample.std()) / len(truth) ** 0.5 / (2 * value)


@torch.no_grad()
def lookahead_errors(
    flow_map: FlowMap,
    trajectory: Trajectory,
    *,
    velocity: VelocityField | None = None,
    map_steps: Sequence[int] = MAP_STEPS,
    chunk_size: int = 256,
    track: Track = silent,
) -> LookaheadErrors:
    """RMSE of every look-ahead against the reference endpoint.

    Args:
        trajectory: from :func:`reference`.
        velocity: whose denoiser is measured; the flow map's own diagonal if omitted.
        map_steps: the k of the k-step maps.
    """
    named = lookaheads(flow_map, velocity=velocity, map_steps=map_steps)
    result = LookaheadErrors(trajectory.times, {n: [] for n in named}, {n: [] for n in named})
    for k in track(range(len(trajectory.times)), "look-ahead errors"):
        for name, function in named.items():
            x, t = trajectory.states[k], trajectory.times[k]
            value, error = rmse(chunked(function, x, t, trajectory.cond, chunk_size), trajectory.endpoint)
            result.rmse[name].append(value)
            result.standard_error[name].append(error)
    return result


@torch.no_grad()
def euler_error(
    velocity: VelocityField, trajectory: Trajectory, steps: int, *, chunk_size: int = 256
) -> float:
    """RMSE of ``steps`` uniform Euler steps from time 0 to 1. The trajectory must hold time 0."""
    if trajectory.times[0] != 0:
        raise UserError("matching Euler steps needs the time 0 on the trajectory's grid")

    def integrate(x: Tensor, t: float, cond: Cond | None) -> Tensor:
        return ode.euler(velocity, x, torch.linspace(t, 1, steps + 1, dtype=x.dtype, device=x.device), cond)

    end = chunked(integrate, trajectory.states[0], 0.0, trajectory.cond, chunk_size)
    return rmse(end, trajectory.endpoint)[0]


def teacher_nfe_matched(
    velocity: VelocityField,
    trajectory: Trajectory,
    errors: LookaheadErrors,
    *,
    max_steps: int = MAX_TEACHER_STEPS,
    chunk_size: int = 256,
    track: Track = silent,
) -> dict[str, int]:
    """Euler steps the teacher needs from t = 0 to match each k-step map's error; ``max_steps`` if never.

    The smallest such number, given that Euler's error falls with its steps (doubling, then bisection).
    """
    known: dict[int, float] = {}

    def error(n: int) -> float:
        if n not in known:
            known[n] = euler_error(velocity, trajectory, n, chunk_size=chunk_size)
        return known[n]

    matched = {}
    names = [name for name in errors.rmse if name.startswith("map_")]
    for k in track(range(len(names)), "matching Euler steps"):
        target = errors.rmse[names[k]][0]
        low, high = 0, 1  # error(low) is above the target, error(high) is yet to be found at or below it
        while high < max_steps and error(high) > target:
            low, high = high, min(2 * high, max_steps)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if error(middle) <= target else (middle, high)
        matched[names[k]] = high
    return matched
