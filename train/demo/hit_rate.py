"""How often each method delivers the asked-for clock within a budget of network passes per run.

Every method is given the same budgets (a backward counts 2); its settings are formulas in the budget,
the same at all budgets. A run returns the one sample that the optimised reward likes best, and the judge,
which is another function than the reward, reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

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
KEEP = 2
"""Candidates that survive a selection of the search."""
GUIDANCE = {"flow_map": 2.0, "denoiser": 1.0}
"""Guidance of the search: the best of 1, 2 and 4 for each look-ahead at a budget of 200."""


class Setting(NamedTuple):
    """What a method works with."""

    flow_map: NeuralFlowMap
    teacher: NeuralFlowMap
    generator: torch.Generator
    runs: int = RUNS

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every method takes."""
        return {"num_populations": self.runs, "chunk_size": CHUNK, "generator": self.generator}


class Outcome(NamedTuple):
    """One method at one budget: share of runs that hit, mean reward, network passes per run."""

    hit_rate: float
    mean_reward: float
    passes: float


def late_times(u: float) -> float:
    """A time grid that takes short steps first: most of a clock is settled in the first half."""
    return u**1.5


def selections(budget: int) -> int:
    """Rounds of a search: more of them, with more candidates each, as the budget grows."""
    return max(4, round(budget**0.5 / 2.4))


def search(setting: Setting, lookahead: str, budget: int) -> SearchResult:
    """FMTT as a search: look ahead, keep the best, move along the reward's gradient, noise again."""
    rounds = selections(budget)
    # A candidate costs one look-ahead a round and at the end (the denoiser's first round is blind and one
    # step longer); a survivor costs a gradient (3 passes) and, with a map, its own noise-free step (1).
    if lookahead == "flow_map":
        particles = (budget - 4 * KEEP * rounds) // (rounds + 1)
    else:
        particles = (budget - 3 * KEEP * rounds) // (rounds + 2)
    return fmtt.search(
        setting.flow_map,
        ClockReward(TARGET, SHARPNESS),
        num_particles=particles,
        keep=KEEP,
        rounds=rounds,
        lookahead=lookahead,
        guidance=GUIDANCE[lookahead],
        velocity=setting.teacher.velocity,
        kernel="renoise",
        times=late_times,
        **setting.common,
    )


def tilt(setting: Setting, lookahead: str, budget: int) -> TiltResult:
    """FMTT with path weights and resampling; steps and particles both grow as the budget's root."""
    steps = 2 * selections(budget)
    # A step looks ahead with a gradient (3 passes; the denoiser's is the velocity's own network call), but
    # the first, where the tilt has no strength, and the last, which draws no noise, do without it.
    return fmtt.tilt(
        setting.flow_map,
        ClockReward(TARGET, SHARPNESS),
        num_particles=budget // (3 * steps - 4),
        num_steps=steps,
        lookahead=lookahead,
        weights="path",
        velocity=setting.teacher.velocity,
        kernel="renoise" if lookahead == "flow_map" else "sde",
        times=late_times,
        **setting.common,
    )


def outcome(result: SearchResult | TiltResult) -> Outcome:
    """What the judge says of every run's best sample."""
    hit = hits(result.best, TARGET, TOLERANCE)
    passes = result.cost.passes_per_population
    return Outcome(float(hit.double().mean()), float(result.best_rewards.mean()), passes)


def steered(method: Callable[[Setting, str, int], Any], lookahead: str) -> Callable[[Setting], list[Outcome]]:
    """All budgets of one variant of FMTT."""
    return lambda setting: [outcome(method(setting, lookahead, budget)) for budget in BUDGETS]


def best_of(steps: int, sampler: str, single: bool = False) -> Callable[[Setting], list[Outcome]]:
    """All budgets of best-of-N: the runs at a small budget are the first samples of those at the largest."""

    def method(setting: Setting) -> list[Outcome]:
        most = 1 if single else BUDGETS[-1] // steps
        result = best_of_n(
            setting.flow_map,
            ClockReward(TARGET, SHARPNESS),
            num_samples=most,
            steps=steps,
            sampler=sampler,
            velocity=setting.teacher.velocity,
            **setting.common,
        )
        rewards = result.rewards.reshape(setting.runs, most)
        images = result.samples.reshape(setting.runs, most, *result.samples.shape[1:])
        outcomes = []
        for budget in BUDGETS:
            n = 1 if single else budget // steps
            best = rewards[:, :n].max(1)
            hit = hits(images[torch.arange(setting.runs), best.indices], TARGET, TOLERANCE)
            outcomes.append(Outcome(float(hit.double().mean()), float(best.values.mean()), float(n * steps)))
        return outcomes

    return method


METHODS: dict[str, dict[str, Callable[[Setting], list[Outcome]]]] = {
    "base": {"one sample": best_of(BASE_STEPS, "velocity", single=True)},
    "best_of_n": {"50-step base": best_of(BASE_STEPS, "velocity")},
    "best_of_n_few_step": {"4-step map": best_of(FEW_STEPS, "flow_map")},
    "fmtt_denoiser": {"tilt": steered(tilt, "denoiser"), "search": steered(search, "denoiser")},
    "fmtt_flow_map": {"tilt": steered(tilt, "flow_map"), "search": steered(search, "flow_map")},
}
"""The variants of each method; the better one counts."""


def compare(flow_map: NeuralFlowMap, teacher: NeuralFlowMap, *, seed: int = 0) -> dict[str, Any]:
    """All methods at all budgets.

    Returns:
        ``hit_rate`` and ``mean_reward``: a list over BUDGETS by method, of the variant that hits more
        often over all budgets. ``variants``: every variant's outcomes, with passes per run.

    Raises:
        AssertionError: when a method spent more than its budget.
    """
    table: dict[str, dict[str, list[Outcome]]] = {}
    for name, variants in METHODS.items():
        table[name] = {}
        for variant, method in variants.items():
            setting = Setting(flow_map, teacher, torch.Generator().manual_seed(seed))
            outcomes = method(setting)
            for budget, o in zip(BUDGETS, outcomes, strict=True):
                assert o.passes <= budget, f"{name}, {variant}: {o.passes} passes exceed {budget}"
            table[name][variant] = outcomes
            rates = "  ".join(f"{o.hit_rate:.2f}" for o in outcomes)
            print(f"  {f'{name} ({variant})':<34} {rates}", flush=True)
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
