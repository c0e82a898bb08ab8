"""Effective sample size foretold by the thermodynamic length, and measured.

For an exact map the length is Lambda = int_0^1 sd_lambda(r) d lambda, the sd of r under rho e^{lambda r}: it
depends neither on the transport nor on the schedule. At constant speed, K steps have a total discrepancy of
sum_k log E[w_k²] - 2 log E[w_k] = Lambda²/K + o(1/K) in their incremental weights w_k (arXiv 2511.22688), and
e^-discrepancy is the product of the steps' conditional ESS. So with D = Lambda²/K

    resampled at every step      product of the steps' ESS = e^-D                       to leading order
    never resampled              ESS of the whole run <= e^-D: = e^-D only if the steps' weights are
                                 independent, and e^-Lambda² if a particle never forgets its reward

Two lengths are put in: the closed form, which knows the prior of the clock's times and no model, and one
pilot run's, at the most steps, whose populations are not among those that the ESS is measured on.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

import fmtt
from fmtt.rewards import clock
from fmtt.rewards.clock_reward import ClockReward
from tests.benchmarks.advantage import CHUNK, Task
from tests.benchmarks.kept import generator, mean

RESAMPLING = {"every step": {"ess_threshold": 1.0}, "never": {"resample": "none"}}
SHADES, GRID = 2, 400


class Point(NamedTuple):
    """A foretold and a measured ESS, and what they belong to."""

    lookahead: str
    sharpness: float
    steps: int
    foretold: float
    closed_form: float
    measured: float
    error: float


@lru_cache(maxsize=4)
def _prior(target: str) -> tuple[Tensor, Tensor]:
    """(log p, r at sharpness 1) over a grid of times and a few shades, (M,) float64."""
    times = torch.arange(0, clock.MINUTES, 0.5)
    stream = torch.Generator().manual_seed(0)
    unit = ClockReward(target, 1.0)
    drawn = [torch.rand(len(times), clock.NUM_SHADES, generator=stream) for _ in range(SHADES)]
    r = torch.cat([unit(clock.render(clock.Clock(times, shades))).double() for shades in drawn])
    return torch.log_softmax(clock.time_density(times).log().repeat(SHADES), 0), r


def length_of(log_p: Tensor, r: Tensor, grid: int = GRID) -> float:
    """Lambda of the reward r (M,) under a law of log-probabilities log_p (M,)."""
    strengths = torch.cat([torch.zeros(1), torch.logspace(-6, 0, grid)]).double()
    speed = []
    for strength in strengths:
        p = torch.softmax(log_p + strength * r, 0)
        speed.append(float((p * (r - (p * r).sum()).square()).sum().sqrt()))
    return float(torch.trapezoid(torch.tensor(speed, dtype=torch.float64), strengths))


@lru_cache(maxsize=64)
def closed_length(target: str, sharpness: float) -> float:
    """Lambda for clocks that show ``target``, under the prior of times and uniform shades."""
    log_p, r = _prior(target)
    return length_of(log_p, sharpness * r)


def measure(
    task: Task, lookahead: str, steps: int, resampling: str, num_particles: int, populations: int
) -> dict[str, Any]:
    """ESS and length of every population of a tilt with exact weights at constant thermodynamic speed."""
    result = fmtt.tilt(
        task.flow_map,
        task.reward,
        num_particles=num_particles,
        num_populations=populations,
        num_steps=steps,
        lookahead=lookahead,
        weights="exact",
        schedule="adaptive",
        velocity=task.velocity,
        chunk_size=CHUNK,
        generator=generator(f"{task.name}-{lookahead}-{steps}-{resampling}"),
        **RESAMPLING[resampling],
    )
    discrepancy = result.history.total_discrepancy[-1]
    ess = (-discrepancy).exp() if resampling == "every step" else result.ess
    return {
        "ess": ess.tolist(),
        "length": result.history.thermodynamic_length[-1].tolist(),
        "discrepancy": discrepancy.tolist(),
        "log_z": result.log_z.tolist(),
    }


def points(
    cells: dict[tuple[str, float, int, str], dict[str, Any]], resampling: str, target: str
) -> list[Point]:
    """One per look-ahead, sharpness and number of steps.

    Args:
        cells: results of :func:`measure` by look-ahead, sharpness, steps and resampling.
    """
    most = max(steps for _, _, steps, _ in cells)
    found = []
    for (lookahead, sharpness, steps, how), cell in cells.items():
        if how != resampling:
            continue
        pilot = cells[lookahead, sharpness, most, "every step"]["length"]
        half = len(pilot) // 2
        length = sum(pilot[:half]) / half
        measured = cell["ess"][half:] if steps == most else cell["ess"]
        value, error = mean(torch.tensor(measured))
        closed = math.exp(-(closed_length(target, sharpness) ** 2) / steps)
        found.append(Point(lookahead, sharpness, steps, math.exp(-(length**2) / steps), closed, value, error))
    return found


def agreement(found: list[Point], lookahead: str | None = None) -> dict[str, float]:
    """Rank correlation, mean absolute and mean error of the foretold ESS, by pilot and by closed form."""
    chosen = [p for p in found if lookahead in (None, p.lookahead)]
    measured = [p.measured for p in chosen]
    answer: dict[str, float] = {"points": len(chosen)}
    for name in ("foretold", "closed_form"):
        values = [getattr(p, name) for p in chosen]
        errors = [a - b for a, b in zip(values, measured, strict=True)]
        correlation: Any = spearmanr(values, measured)
        answer[f"{name}_rank_correlation"] = float(correlation.statistic)
        answer[f"{name}_mean_absolute_error"] = sum(map(abs, errors)) / len(errors)
        answer[f"{name}_mean_error"] = sum(errors) / len(errors)
    return answer
