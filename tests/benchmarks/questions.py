"""The paper's open questions, measured on the clock. ``make bench-questions``.

    sharpness    what is the map's look-ahead worth beside the denoiser's as the reward gets sharper?
    constraints  and as constraints are added: the time, an orange hour hand, invariance under a half turn?
    ess          does the thermodynamic length foretell the effective sample size?

The first two compare at equal cost in network passes, a backward counted twice; who judges is not what was
optimised (tests/benchmarks/constraints.py). What is measured stands in tests/benchmarks/advantage.py and
ess.py. Finished cells under OUT are kept. Prints tables, writes a figure per question and OUT/summary.json.
The models are the shipped ones: what is found holds for one small task and one quality of map.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import fmtt
from fmtt.errors import UserError
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards.clock_reward import ClockReward
from fmtt.rewards.composite import parts_of
from fmtt.types import VelocityField
from tests.benchmarks import constraints, ess, question_figures
from tests.benchmarks.advantage import LOOKAHEADS, Size, Task, returned, weighted
from tests.benchmarks.constraints import TARGET
from tests.benchmarks.kept import digest, kept, write_png
from tests.benchmarks.question_figures import twins

MAP, TEACHER = "clock-map", "clock-teacher"
LABELS = ("time", "+ hand colour", "+ rotation")


@dataclass(frozen=True)
class Plan:
    """Levels of the questions and how much each cell may spend.

    Attributes:
        size, constraint_size: of a level of the first question, and of the second.
        sharpness: of the clock's reward, in the first question.
        ess_sharpness, ess_steps: in the third.
        particles, populations: of its runs; an even number of populations, half of which are the pilot.
    """

    size: Size = field(default_factory=Size)
    constraint_size: Size = field(default_factory=lambda: Size(budgets=(256, 1024)))
    sharpness: tuple[float, ...] = (10.0, 20.0, 40.0, 80.0, 160.0)
    ess_sharpness: tuple[float, ...] = (2.5, 5.0, 10.0, 20.0, 40.0)
    ess_steps: tuple[int, ...] = (8, 16, 32)
    particles: int = 64
    populations: int = 8


SMALL = Size(4, (64,), 4, 128, 6)
QUICK = Plan(SMALL, SMALL, (10.0, 40.0), (2.5, 10.0), (4, 8), 8, 4)


class Bench:
    """The models, the plan and the folder of one run."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        self.flow_map: NeuralFlowMap = fmtt.load(MAP)
        self.digest = digest(self.flow_map)
        self.velocity: VelocityField = fmtt.load(TEACHER).velocity

    def task(self, name: str, sharpness: float) -> Task:
        """The time alone, at a sharpness."""
        reward = ClockReward(TARGET, sharpness)
        return Task(name, self.flow_map, self.velocity, reward, lambda x: constraints.checks(x, 1))

    def level(self, task: Task, size: Size, label: str, x: float) -> dict[str, Any]:
        """All cells of one reward."""
        reward = " + ".join(map(repr, parts_of(task.reward, task.name).values()))

        def cell(name: str, asked: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            asked = {"reward": reward, "map": self.digest, **asked}
            return kept(self.out / "cells", f"{task.name}-{name}", asked, work)

        def hits(method: str, passes: int) -> dict[str, Any]:
            asked = {"runs": size.runs}
            return cell(f"{method}-{passes}", asked, lambda: returned(task, method, passes, size.runs))

        def weights(lookahead: str) -> dict[str, Any]:
            asked = {key: value for key, value in asdict(size).items() if key not in ("runs", "budgets")}
            return cell(f"weighted-{lookahead}", asked, lambda: weighted(task, lookahead, size))

        return {
            "label": label,
            "x": x,
            "returned": {str(b): {method: hits(method, b) for method in twins()} for b in size.budgets},
            "weighted": {lookahead: weights(lookahead) for lookahead in LOOKAHEADS},
        }

    def sharpness(self) -> dict[str, Any]:
        """The first question."""
        size = self.plan.size
        levels = [self.level(self.task(f"clock-{s:g}", s), size, f"{s:g}", s) for s in self.plan.sharpness]
        figure = question_figures.advantage(levels, "sharpness of the reward", logarithmic=True)
        write_png(figure, self.out / "sharpness.png")
        print(f"\nsharper rewards: clock:time={TARGET}\n{question_figures.advantage_table(levels)}")
        return {"levels": levels}

    def constraints(self) -> dict[str, Any]:
        """The second question."""
        levels = []
        for count, label in enumerate(LABELS, 1):
            task = Task(
                f"constraints-{count}",
                self.flow_map,
                self.velocity,
                constraints.reward(count),
                lambda x, count=count: constraints.checks(x, count),
            )
            levels.append(self.level(task, self.plan.constraint_size, label, float(count)))
        figure = question_figures.advantage(levels, "constraints", logarithmic=False)
        write_png(figure, self.out / "constraints.png")
        mass = constraints.near_target().mass
        print(f"\nmore constraints\n{question_figures.advantage_table(levels)}")
        print(f"\neach check\n{question_figures.rates_table(levels)}")
        print(f"share of true clocks that meet 1, 2, 3 constraints: {', '.join(f'{m:.2g}' for m in mass)}")
        return {"levels": levels, "prior_mass": mass}

    def ess(self) -> dict[str, Any]:
        """The third question."""
        plan, cells = self.plan, {}
        sizes = (plan.particles, plan.populations)
        for sharpness in plan.ess_sharpness:
            task = self.task(f"ess-{sharpness:g}", sharpness)
            for lookahead in LOOKAHEADS:
                for steps in plan.ess_steps:
                    for how in ess.RESAMPLING:
                        name = f"{task.name}-{lookahead}-{steps}-{how.replace(' ', '-')}"
                        given = (task, lookahead, steps, how, *sizes)
                        asked = {"sizes": sizes, "map": self.digest}
                        cells[lookahead, sharpness, steps, how] = kept(
                            self.out / "cells", name, asked, lambda g=given: ess.measure(*g)
                        )
        found = {how: ess.points(cells, how, TARGET) for how in ess.RESAMPLING}
        agreed = {
            how: {which or "all": ess.agreement(points, which) for which in (None, *LOOKAHEADS)}
            for how, points in found.items()
        }
        write_png(question_figures.scatter(found, agreed, plan.particles), self.out / "ess.png")
        print(f"\nESS foretold by the thermodynamic length\n{question_figures.ess_table(found, agreed)}")
        points = {how: [p._asdict() for p in mine] for how, mine in found.items()}
        lengths = {f"{s:g}": ess.closed_length(TARGET, s) for s in plan.ess_sharpness}
        return {"points": points, "agreement": agreed, "closed_form_length": lengths}


QUESTIONS = ("sharpness", "constraints", "ess")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--quick", action="store_true", help="a few runs per cell, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/questions"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        make_writable(args.out, "--out")
        bench = Bench(args.out, QUICK if args.quick else Plan())
        answers = {name: getattr(bench, name)() for name in args.only}
        write_json(args.out / "summary.json", {"plan": asdict(bench.plan), **answers})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
