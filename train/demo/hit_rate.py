"""How often each method delivers the asked-for clock within a budget of network passes per run.

Every method is given the same budgets (a backward counts 2); its settings are formulas in the budget, the
same at all budgets (fmtt.baselines.budget). A run returns the one sample that the optimised reward likes
best, and the judge, which is another function than the reward, reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from fmtt.baselines import budget as budgets
from fmtt.baselines.best_of_n import best_of_n
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards.clock_judge import hits
from fmtt.rewards.clock_reward import ClockReward
from fmtt.steering.result import SearchResult, TiltResult

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
    flow_map: NeuralFlowMap, teacher: NeuralFlowMap, *, seed: int, processes: int
) -> Iterator[tuple[str, str, list[Outcome]]]:
    """(method, variant, outcomes) of every variant, in order; the same from any number of processes.

    So small a network gains less from a second thread than two variants from a process each.

    Raises:
        UserError: when a process dies.
    """
    pairs = [(name, variant) for name, variants in METHODS.items() for variant in variants]
    sizes: dict[str, Any] = {"seed": seed, "runs": RUNS, "amounts": BUDGETS}
    if processes == 1:
        yield from ((*pair, outcomes(pair[1], flow_map, teacher, **sizes)) for pair in pairs)
        return
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        work = [pool.submit(outcomes, variant, flow_map, teacher, **sizes) for _, variant in pairs]
        try:
            yield from ((*pair, done.result()) for pair, done in zip(pairs, work, strict=True))
        except BrokenProcessPool as error:
            raise UserError(
                "a process of the tilting experiment died, perhaps for want of memory; run it again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def compare(
    flow_map: NeuralFlowMap, teacher: NeuralFlowMap, *, seed: int = 0, processes: int = 1
) -> dict[str, Any]:
    """All methods at all budgets.

    Returns:
        ``hit_rate`` and ``mean_reward``: a list over BUDGETS by method, of the variant that hits more
        often over all budgets. ``variants``: every variant's outcomes, with passes per run.

    Raises:
        AssertionError: when a method spent more than its budget.
    """
    table: dict[str, dict[str, list[Outcome]]] = {name: {} for name in METHODS}
    for name, variant, found in all_outcomes(flow_map, teacher, seed=seed, processes=processes):
        for budget, o in zip(BUDGETS, found, strict=True):
            assert o.passes <= budget, f"{variant}: {o.passes} passes exceed {budget}"
        table[name][variant] = found
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
