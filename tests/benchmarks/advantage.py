"""What a look-ahead is worth on one reward: the cells of the first two questions.

``returned``: one sample per run, at an equal budget, by the methods and hyperparameters of the comparison.
``weighted``: ``fmtt.tilt`` with path weights. Both look-aheads move on the same discretised SDE and so tilt
the same law, at an equal budget: the map's look-ahead needs a pass of its own beside the velocity, and gets
fewer particles for it. Their log Z estimates one number; its spread over independent populations is what the
weights are good for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fmtt
from fmtt.baselines import budget
from fmtt.types import FlowMap, Reward, VelocityField
from tests.benchmarks.kept import generator, mean, spread

LOOKAHEADS = ("denoiser", "flow_map")
METHODS = ("fmtt_tilt", "fmtt_search")
"""Of the comparison; each has a twin with the denoiser's look-ahead."""
CHUNK = 256
DRAWN = 4
"""Samples drawn by weight from every population, to be checked."""

Checks = Callable[[Tensor], Mapping[str, Tensor]]
"""Samples (B, *D) to (B,) bool by the name of the check."""


@dataclass(frozen=True)
class Size:
    """How much is spent.

    Attributes:
        runs: of a method, on each of ``budgets`` network passes.
        populations: of a weighted tilt of ``steps`` steps, on ``weighted_budget`` passes each.
    """

    runs: int = 128
    budgets: tuple[int, ...] = (256,)
    populations: int = 64
    weighted_budget: int = 1024
    steps: int = 16


@dataclass(frozen=True)
class Task:
    """A reward and the checks that judge it; ``seed`` names its random numbers."""

    name: str
    flow_map: FlowMap
    velocity: VelocityField
    reward: Reward
    checks: Checks


def particles(lookahead: str, size: Size) -> int:
    """How many particles of a weighted tilt the budget pays for: 3 passes a step, the map's look-ahead 4.

    The first step needs no reverse pass, nor do the last step, which draws no noise, and the end; at time 1
    nothing is looked ahead to.
    """
    K = size.steps
    return size.weighted_budget // (4 * K - 5 if lookahead == "flow_map" else 3 * K - 4)


def returned(task: Task, method: str, passes: int, runs: int) -> dict[str, Any]:
    """Rates at which the one sample that a run on ``passes`` network passes returns meets the checks."""
    result = budget.run(
        method,
        task.flow_map,
        task.reward,
        budget=passes,
        num_populations=runs,
        velocity=task.velocity,
        chunk_size=CHUNK,
        generator=generator(f"{task.name}-{method}-{passes}"),
    )
    return {
        "rates": {key: mean(met) for key, met in task.checks(result.best).items()},
        "reward": mean(result.best_rewards),
        "passes": result.cost.passes_per_population,
    }


def weighted(task: Task, lookahead: str, size: Size) -> dict[str, Any]:
    """Weights of a tilt, per population, and how often samples drawn by them meet the checks."""
    count = particles(lookahead, size)
    result = fmtt.tilt(
        task.flow_map,
        task.reward,
        num_particles=count,
        num_populations=size.populations,
        num_steps=size.steps,
        lookahead=lookahead,
        weights="path",
        velocity=task.velocity,
        chunk_size=CHUNK,
        generator=generator(f"{task.name}-weighted-{lookahead}"),
    )
    drawn = result.resample(DRAWN, torch.Generator().manual_seed(0))
    rates = {
        k: met.double().reshape(size.populations, DRAWN).mean(1) for k, met in task.checks(drawn).items()
    }
    history, pooled = result.history, result.pooled_log_z
    return {
        "rates": {key: mean(rate) for key, rate in rates.items()},
        "log_z": mean(result.log_z),
        "log_z_spread": spread(result.log_z),
        "pooled_log_z": [float(pooled.value), float(pooled.standard_error)],
        "ess": mean(history.ess.mean(0)),
        "discrepancy": mean(history.total_discrepancy[-1]),
        "length": mean(history.thermodynamic_length[-1]),
        "resamples": mean(history.resampled.double().sum(0)),
        "ancestors": mean(result.distinct_ancestors.double()),
        "particles": count,
        "passes": result.cost.passes_per_population,
    }
