"""How often each method delivers the asked-for clock within a budget of network passes per run.

Every method is given the same budgets (a backward counts 2); its settings are formulas in the budget, the
same at all budgets (fmtt.baselines.budget). A run returns the one sample that the optimised reward likes
best, and the judge, which is another function than the reward, reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from fmtt.baselines import budget as budgets
from fmtt.baselines.best_of_n import best_of_n
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards.clock_judge import hits
from fmtt.rewards.clock_reward import ClockReward
from fmtt.steering.result import SearchResult, TiltResult
from train.demo.processes import workers

TARGET, TOLERANCE, SHARPNESS = "3:47", 10, 40.0
BUDGETS = (100, 200, 400, 800, 1600)
RUNS = 64
BASE_STEPS = budgets.BASE_STEPS
CHUNK = 256
BASE = "base"
METHODS = {
    BASE: (BASE,),
    "best_of_n": ("best_of_n",),
    "best_of_n_few_step": ("best_of_n_few_step",),
    "fmtt_denoiser": ("fmtt_tilt_denoiser", "fmtt_search_denoiser"),
    "fmtt_flow_map": ("fmtt_tilt", "fmtt_search"),
}
"""The variants of each method; the better one counts."""


class Outcome(NamedTuple):
    """One method at one budget: share of runs that hit, mean reward, network passes per run."""

    hit_rate: float
    mean_reward: float
    passes: float


def outcome(result: SearchResult | TiltResult) -> Outcome:
    """What the judge says of every run's best sample."""
    hit = hits(result.best, TARGET, TOLERANCE)
    passes = result.cost.passes_per_population
    return Outcome(float(hit.double().mean()), float(result.best_rewards.mean()), passes)


def outcomes(
    variant: str,
    flow_map: NeuralFlowMap,
    teacher: NeuralFlowMap,
    *,
    seed: int = 0,
    runs: int = RUNS,
    amounts: tuple[int, ...] = BUDGETS,
) -> list[Outcome]:
    """One variant at all budgets; the base is one sample, whatever the budget."""
    reward = ClockReward(TARGET, SHARPNESS)
    common: dict[str, Any] = {"num_populations": runs, "chunk_size": CHUNK, "velocity": teacher.velocity}
    generator = torch.Generator().manual_seed(seed)
    if variant == BASE:
        sizes = {"num_samples": 1, "steps": BASE_STEPS, "sampler": "velocity"}
        one = outcome(best_of_n(flow_map, reward, **sizes, **common, generator=generator))
        return [one] * len(amounts)
    return [
        outcome(budgets.run(variant, flow_map, reward, budget=budget, generator=generator, **common))
        for budget in amounts
    ]


def all_outcomes(
    variants: Sequence[str], flow_map: NeuralFlowMap, teacher: NeuralFlowMap, *, seed: int, processes: int
) -> Iterator[tuple[str, list[Outcome]]]:
    """(variant, outcomes) of ``variants``, in order; the same from any number of processes.

    Raises:
        UserError: when a process dies.
    """
    sizes: dict[str, Any] = {"seed": seed, "runs": RUNS, "amounts": BUDGETS}
    if processes == 1:
        yield from ((variant, outcomes(variant, flow_map, teacher, **sizes)) for variant in variants)
        return
    with workers(processes) as pool:
        work = [pool.submit(outcomes, variant, flow_map, teacher, **sizes) for variant in variants]
        yield from ((variant, done.result()) for variant, done in zip(variants, work, strict=True))


def compare(
    flow_map: NeuralFlowMap,
    teacher: NeuralFlowMap,
    *,
    seed: int = 0,
    processes: int = 1,
    known: Mapping[str, list[Outcome]] | None = None,
) -> dict[str, Any]:
    """All methods at all budgets.

    Args:
        known: outcomes by variant that were found before, with the same ``seed``.

    Returns:
        ``hit_rate`` and ``mean_reward``: a list over BUDGETS by method, of the variant that hits more
        often over all budgets. ``variants``: every variant's outcomes, with passes per run.

    Raises:
        AssertionError: when a method spent more than its budget.
    """
    method_of = {variant: name for name, variants in METHODS.items() for variant in variants}
    known = known or {}
    rest = [variant for variant in method_of if variant not in known]
    others = all_outcomes(rest, flow_map, teacher, seed=seed, processes=processes)
    table: dict[str, dict[str, list[Outcome]]] = {name: {} for name in METHODS}
    for variant, found in chain(known.items(), others):
        for budget, o in zip(BUDGETS, found, strict=True):
            assert o.passes <= budget, f"{variant}: {o.passes} passes exceed {budget}"
        table[method_of[variant]][variant] = found
        rates = "  ".join(f"{o.hit_rate:.2f}" for o in found)
        print(f"  {variant:<34} {rates}", flush=True)
    better = {
        name: max(variants.values(), key=lambda outcomes: sum(o.hit_rate for o in outcomes))
        for name, variants in table.items()
    }
    return {
        "hit_rate": {name: [o.hit_rate for o in outcomes] for name, outcomes in better.items()},
        "mean_reward": {name: [o.mean_reward for o in outcomes] for name, outcomes in better.items()},
        "variants": {
            name: {variant: [o._asdict() for o in outcomes] for variant, outcomes in variants.items()}
            for name, variants in table.items()
        },
    }
