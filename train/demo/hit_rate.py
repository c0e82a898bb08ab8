"""How often each method delivers the asked-for clock within a budget of network passes per run.

Every method is given the same budgets (a backward counts 2); its settings are formulas in the budget,
the same for all budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fmtt
from fmtt.baselines.best_of_n import best_of_n
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards.clock_judge import hits
from fmtt.rewards.clock_reward import ClockReward
from fmtt.steering.result import SearchResult, TiltResult

TARGET, TOLERANCE, SHARPNESS = "3:47", 10, 40.0
BUDGETS = (100, 200, 400, 800, 1600)
RUNS = 64
BASE_STEPS, FEW_STEPS = 50, 4
CHUNK = 256
SEARCH_ROUNDS = 4

Result = TiltResult | SearchResult


class Setting(NamedTuple):
    """What a method works with."""

    flow_map: NeuralFlowMap
    teacher: NeuralFlowMap
    budget: int
    generator: torch.Generator


class Outcome(NamedTuple):
    """One method at one budget: share of runs that hit, mean reward, passes per run, what was returned."""

    hit_rate: float
    mean_reward: float
    passes: float
    best: Tensor


def draw(setting: Setting, n: int) -> Result:
    """Best of ``n`` samples of the teacher's 50-step sampler."""
    return best_of_n(
        setting.flow_map,
        ClockReward(TARGET, SHARPNESS),
        num_samples=n,
        steps=BASE_STEPS,
        sampler="velocity",
        velocity=setting.teacher.velocity,
        num_populations=RUNS,
        chunk_size=CHUNK,
        generator=setting.generator,
    )


def draw_few_step(setting: Setting) -> Result:
    """Best of N samples of the 4-step map."""
    return best_of_n(
        setting.flow_map,
        ClockReward(TARGET, SHARPNESS),
        num_samples=setting.budget // FEW_STEPS,
        steps=FEW_STEPS,
        num_populations=RUNS,
        chunk_size=CHUNK,
        generator=setting.generator,
    )


def tilt(setting: Setting, lookahead: str) -> Result:
    """FMTT with path weights on the teacher's SDE."""
    passes = 3 if lookahead == "denoiser" else 4
    particles, steps = split_budget(setting.budget, passes)
    return fmtt.tilt(
        setting.flow_map,
        ClockReward(TARGET, SHARPNESS),
        num_particles=particles,
        num_steps=steps,
        lookahead=lookahead,
        weights="path",
        velocity=setting.teacher.velocity,
        num_populations=RUNS,
        chunk_size=CHUNK,
        generator=setting.generator,
    )


def search(setting: Setting, lookahead: str) -> Result:
    """FMTT as a search: rounds of look-ahead, selection and re-noising with the reward's gradient."""
    rounds = SEARCH_ROUNDS
    particles = max(2, setting.budget // (rounds * 2))
    keep = max(1, particles // 6)
    kind: dict[str, Any] = {"kernel": "renoise"}
    return fmtt.search(
        setting.flow_map,
        ClockReward(TARGET, SHARPNESS),
        num_particles=particles,
        keep=keep,
        rounds=rounds,
        lookahead=lookahead,
        velocity=setting.teacher.velocity,
        num_populations=RUNS,
        chunk_size=CHUNK,
        generator=setting.generator,
        **kind,
    )


def split_budget(budget: int, passes_per_step: int) -> tuple[int, int]:
    """(particles, steps): as many steps as particles up to a point, within the budget."""
    particles = max(2, round((budget / passes_per_step / 6) ** 0.5))
    return particles, budget // (passes_per_step * particles)


def run(name: str, method: Callable[[Setting], Result], setting: Setting) -> Outcome:
    """One method at one budget.

    Raises:
        AssertionError: when the method spent more than the budget.
    """
    result = method(setting)
    passes = result.cost.passes / RUNS
    assert passes <= setting.budget, f"{name} spent {passes} of {setting.budget} passes"
    hit = hits(result.best, TARGET, TOLERANCE)
    return Outcome(float(hit.double().mean()), float(result.best_rewards.mean()), passes, result.best)


VARIANTS: dict[str, dict[str, Callable[[Setting], Result]]] = {
    "base": {"base": lambda s: draw(s, 1)},
    "best_of_n": {"best_of_n": lambda s: draw(s, s.budget // BASE_STEPS)},
    "best_of_n_few_step": {"best_of_n_few_step": draw_few_step},
    "fmtt_denoiser": {
        "tilt": lambda s: tilt(s, "denoiser"),
        "search": lambda s: search(s, "denoiser"),
    },
    "fmtt_flow_map": {
        "tilt": lambda s: tilt(s, "flow_map"),
        "search": lambda s: search(s, "flow_map"),
    },
}
"""Methods by the name in the summary, each with the variants of which the better one counts."""


def compare(flow_map: NeuralFlowMap, teacher: NeuralFlowMap, *, seed: int = 0) -> dict[str, Any]:
    """All methods at all budgets.

    Returns:
        ``hit_rate`` and ``mean_reward``: a list over BUDGETS by method, of the variant that hits more
        often over all budgets. ``variants``: everything, with passes per run.
    """
    table: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, variants in VARIANTS.items():
        table[name] = {}
        for variant, method in variants.items():
            outcomes = []
            for budget in BUDGETS:
                generator = torch.Generator().manual_seed(seed + budget)
                o = run(name, method, Setting(flow_map, teacher, budget, generator))
                outcomes.append({"hit_rate": o.hit_rate, "mean_reward": o.mean_reward, "passes": o.passes})
            table[name][variant] = outcomes
            rates = "  ".join(f"{o['hit_rate']:.2f}" for o in outcomes)
            print(f"  {name if name == variant else f'{name}, {variant}':<24} {rates}", flush=True)
    better = {
        name: max(variants.values(), key=lambda outcomes: sum(o["hit_rate"] for o in outcomes))
        for name, variants in table.items()
    }
    return {
        "hit_rate": {name: [o["hit_rate"] for o in outcomes] for name, outcomes in better.items()},
        "mean_reward": {name: [o["mean_reward"] for o in outcomes] for name, outcomes in better.items()},
        "variants": table,
    }
