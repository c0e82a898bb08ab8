"""Every method within a budget of network passes per run, for a comparison at equal cost.

A backward counts two passes on top of its forward. A method's sizes (particles, steps, rounds) are formulas
in the budget; its hyperparameters are the same at every budget. No method spends more than the budget; what
does not divide it is left unspent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fmtt.baselines import parts
from fmtt.baselines.best_of_n import best_of_n
from fmtt.baselines.das import das
from fmtt.baselines.denoiser_guidance import denoiser_guidance
from fmtt.baselines.fk_steering import fk_steering
from fmtt.baselines.fmrg import fmrg
from fmtt.baselines.multi_round import multi_round
from fmtt.baselines.reno import reno
from fmtt.errors import UserError
from fmtt.steering.result import SearchResult, TiltResult
from fmtt.steering.search import search
from fmtt.steering.tilt import tilt
from fmtt.types import Cond, FlowMap, Reward, VelocityField

Result = SearchResult | TiltResult
BASE_STEPS, FEW_STEPS = 50, 4


class TooSmall(UserError):
    """The budget does not pay for the method's smallest run."""


class Task(NamedTuple):
    """A budget, the velocity for those who use it, and the arguments that all methods take alike."""

    budget: int
    velocity: dict[str, VelocityField | None]
    common: dict[str, Any]

    def afford(self, cost: int, shared: int = 0, least: int = 1) -> int:
        """How many particles of ``cost`` passes each the budget pays for, besides ``shared`` passes.

        Raises:
            UserError: when it does not pay for ``least``.
        """
        if self.budget - shared < least * cost:
            raise TooSmall(f"budget={self.budget} is too small for this method: give {shared + least * cost}")
        return (self.budget - shared) // cost

    def steps(self, factor: float, least: int, most: int = BASE_STEPS) -> int:
        """A number that grows as the budget's root, so that steps and particles grow together."""
        return min(most, max(least, round(factor * self.budget**0.5)))


def _best_of_n(task: Task) -> Result:
    count = task.afford(BASE_STEPS)
    return best_of_n(num_samples=count, steps=BASE_STEPS, sampler="velocity", **task.velocity, **task.common)


def _best_of_n_few_step(task: Task) -> Result:
    return best_of_n(num_samples=task.afford(FEW_STEPS), steps=FEW_STEPS, **task.common)


def _multi_round(task: Task) -> Result:
    keep, again, rounds = 2, 2, task.steps(0.25, 2)
    repeats = (rounds - 1) * again
    # All but the kept candidates are regenerated, in every round after the first.
    count = task.afford(FEW_STEPS + repeats, -repeats * keep, keep + 1)
    sizes = {"num_samples": count, "rounds": rounds, "keep": keep}
    return multi_round(**sizes, steps=FEW_STEPS, regenerate_steps=again, t_back=0.35, **task.common)


def _reno(task: Task) -> Result:
    steps, iterations = 1, 10
    count = task.afford(steps * (3 * iterations - 2))
    return reno(num_samples=count, iterations=iterations, steps=steps, **task.common)


def _denoiser_guidance(task: Task) -> Result:
    steps = task.steps(1.25, 8)
    sizes = {"num_samples": task.afford(3 * steps - 4), "num_steps": steps}
    return denoiser_guidance(**sizes, step_size="normalized", guidance=0.25, **task.velocity, **task.common)


def _fk_steering(potential: str, strength: float) -> Callable[[Task], Result]:
    def method(task: Task) -> Result:
        steps = task.steps(1.5, 8)
        sizes = {"num_particles": task.afford(steps), "num_steps": steps}
        return fk_steering(**sizes, potential=potential, strength=strength, **task.velocity, **task.common)

    return method


def _das(task: Task) -> Result:
    steps = task.steps(1.0, 6)
    sizes = {"num_particles": task.afford(3 * steps - 4), "num_steps": steps}
    return das(**sizes, **task.velocity, **task.common)


def _fmrg(task: Task) -> Result:
    steps, finish = task.steps(0.8, 4), 2
    sizes = {"num_samples": task.afford(3 * steps + finish), "num_steps": steps, "finish_steps": finish}
    return fmrg(**sizes, guide_until=0.5, strength=2.0, **task.common)


def _late(u: float) -> float:
    return u**1.5  # short steps first: a sample is decided early


def _fmtt_tilt(lookahead: str) -> Callable[[Task], Result]:
    def method(task: Task) -> Result:
        steps = 2 * task.steps(1 / 2.4, 4)
        sizes = {"num_particles": task.afford(3 * steps - 4), "num_steps": steps}
        kernel = "renoise" if lookahead == "flow_map" else "sde"
        # A sharp reward's own step overshoots; path weights make up for clipping it.
        guide = {"step_size": "clipped", "guidance": 2.0, "weights": "path"}
        return tilt(
            **sizes,
            **guide,
            lookahead=lookahead,
            kernel=kernel,
            times=_late,
            **task.velocity,
            **task.common,
        )

    return method


def _fmtt_search(lookahead: str) -> Callable[[Task], Result]:
    def method(task: Task) -> Result:
        keep, rounds = 2, task.steps(1 / 2.4, 4)
        # A survivor costs a gradient (3 passes) and, with a map, its own noise-free step (1); a candidate
        # one look-ahead a round and at the end. The denoiser's first round is blind, one step longer.
        maps = lookahead == "flow_map"
        count = task.afford(rounds + 1 + (not maps), (3 + maps) * keep * rounds, keep)
        sizes = {"num_particles": count, "keep": keep, "rounds": rounds}
        # One standard deviation of the noise: in the reward's own scale a sharp reward overshoots.
        options = {"lookahead": lookahead, "kernel": "renoise", "times": _late, "step_size": "normalized"}
        return search(**sizes, **options, **task.velocity, **task.common)

    return method


METHODS: dict[str, Callable[[Task], Result]] = {
    "best_of_n": _best_of_n,
    "best_of_n_few_step": _best_of_n_few_step,
    "multi_round": _multi_round,
    "reno": _reno,
    "denoiser_guidance": _denoiser_guidance,
    "fk_difference": _fk_steering("difference", 1.0),
    "fk_max": _fk_steering("max", 1.0),
    "fk_sum": _fk_steering("sum", 1.0),
    "das": _das,
    "fmrg": _fmrg,
    "fmtt_tilt": _fmtt_tilt("flow_map"),
    "fmtt_tilt_denoiser": _fmtt_tilt("denoiser"),
    "fmtt_search": _fmtt_search("flow_map"),
    "fmtt_search_denoiser": _fmtt_search("denoiser"),
}
"""FK steering's final potential is best-of-N with weights, and left out."""
NAMES = tuple(METHODS)
NEED_GRADIENT = ("reno", "denoiser_guidance", "das", "fmrg")
"""Methods that are nothing without the reward's gradient."""


def run(
    method: str,
    flow_map: FlowMap,
    reward: Reward,
    *,
    budget: int,
    num_populations: int,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    chunk_size: int | None = None,
) -> Result:
    """Run a method; ``result.best`` is its answer and ``result.cost.passes_per_population <= budget``.

    Args:
        method: one of NAMES.
        budget: network passes per population.
        num_populations: independent runs, in one batch.
        velocity: the field of methods that integrate one; the map's own if omitted.

    Raises:
        UserError: when the name is unknown, or the budget too small for the method.
    """
    parts.check_choice("method", method, NAMES)
    common = {
        "flow_map": flow_map,
        "reward": reward,
        "num_populations": num_populations,
        "generator": generator,
        "data_shape": data_shape,
        "cond": cond,
        "chunk_size": chunk_size,
    }
    return METHODS[method](Task(budget, {"velocity": velocity}, common))
