"""Every objective on the clock's velocity model at equal processor time: what a flow map gets from it.

``make bench-clock`` runs this. Each run distils the shipped teacher for --seconds of processor time, its
learning rate falling to the end of that time, and is then measured against the teacher's ODE: RMSE of the 1-
and 4-step look-ahead relative to the denoiser's, cosine of the reward's gradient through the look-ahead with
the one through the ODE, and the MMD² of 4-step samples to the teacher's. ``--runs times`` asks whether maps
can be trained for look-ahead: the same objective with uniform times, and with times that look ahead.

Runs that are done are kept in OUT and not repeated. Prints a table and writes OUT/summary.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fmtt
from data.module import open_batches
from fmtt.errors import UserError
from fmtt.evaluation.ascent import reward_errors
from fmtt.evaluation.distances import mmd, self_similarity
from fmtt.evaluation.lookahead import Trajectory, lookahead_errors, reference
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards import build
from train.build import build_module, choose
from train.config import Config, load_config, to_yaml
from train.losses.base import sample_path

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "clock" / "demo.yaml"
TIMES = (0.0, 0.2, 0.4)
MAP_STEPS = (1, 4)
REWARD = "clock:time=3:47,sharpness=10"


def times(distribution: str, diagonal: float, endpoint: float = 0.0, midpoint: str = "middle") -> list[str]:
    """Overrides that leave none of the demo's times."""
    given = {"distribution": distribution, "diagonal": diagonal, "endpoint": endpoint, "midpoint": midpoint}
    return [f"times.{key}={value}" for key, value in given.items()]


LEFT = "objective.time_left_power=1"
UNIFORM = [*times("uniform", 0.1, 0.2), LEFT]
LOOKAHEAD = [*times("lookahead", 0.1, 0.5), "times.s_density=[3,2,1]", LEFT]
RUNS: dict[str, dict[str, list[str]]] = {
    "objectives": {
        "trajectory": ["objective.name=trajectory", *times("noise", 0.05, midpoint="uniform")],
        "psd": ["objective.name=psd", *times("uniform", 0.5, midpoint="uniform"), LEFT],
        **{
            name: [f"objective.name={name}", *UNIFORM]
            for name in ("lsd", "lmd", "esd", "emd", "mean_flow", "consistency", "tvm")
        },
    },
    "times": {
        f"{name}, {label} times": [f"objective.name={name}", *chosen]
        for name in ("lmd", "emd")
        for label, chosen in (("uniform", UNIFORM), ("lookahead", LOOKAHEAD))
    },
}
"""By group: a run's name and what it sets over the demo's configuration."""


def distil(config: Config, seconds: float) -> tuple[NeuralFlowMap, int]:
    """(student with its averaged weights, steps) after ``seconds`` of processor time."""
    batches = open_batches(config.data.source, config.batch_size, seed=config.seed)
    module = build_module(config, "distill", batches.data_shape)
    student, objective = module.student, module.objective.objective
    optimizer = module.configure_optimizers()["optimizer"]
    highest = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(config.seed)
    step, start = 0, time.process_time()
    while (share := (time.process_time() - start) / seconds) < 1:
        warm = min(1.0, (step + 1) / max(1, config.optimizer.warmup))
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * warm * max(config.optimizer.final, 1 - share)
        x_1 = batches.batch(step).x
        x_0 = torch.randn(x_1.shape, generator=generator)
        at = module.times.sample(len(x_1), generator, step=step)
        path = sample_path(student.interpolant, x_0, x_1, at.s)
        out = objective(student, module.velocity(), path, at, None)
        optimizer.zero_grad()
        module.weighting(out.per_sample, at).mean().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.optimizer.clip)
        optimizer.step()
        step += 1
        module.ema.update(student, step)
    with module.ema.swapped_in(student):
        return copy.deepcopy(student).eval().requires_grad_(False), step


class Judge:
    """What every map is measured against: the teacher's ODE, and the MMD of two sets of its samples."""

    def __init__(self, teacher: NeuralFlowMap, count: int) -> None:
        self.teacher, self.reward = teacher, build(REWARD)
        self.trajectory, other = (self.solve(count, seed) for seed in (1, 2))
        self.truth = self.trajectory.endpoint.flatten(1)
        self.bandwidth = float(torch.pdist(self.truth).median())
        self.own = self_similarity(self.truth, self.bandwidth)
        self.floor = self.mmd(other.endpoint)

    def solve(self, count: int, seed: int) -> Trajectory:
        generator = torch.Generator().manual_seed(seed)
        shape = self.teacher.data_shape
        return reference(self.teacher.velocity, count, shape, times=TIMES, tol=1e-4, generator=generator)

    def mmd(self, x: torch.Tensor) -> float:
        """Squared MMD of samples (N, *D) to the teacher's."""
        return float(mmd(x.flatten(1), self.truth, self.bandwidth, own=self.own))

    def measure(self, student: NeuralFlowMap, gradients: int) -> dict[str, Any]:
        """RMSE by look-ahead and time, gradient cosines, MMD² of 4-step samples."""
        velocity = self.teacher.velocity
        errors = lookahead_errors(student, self.trajectory, velocity=velocity, map_steps=MAP_STEPS)
        slopes = reward_errors(
            student,
            self.trajectory.first(gradients),
            self.reward,
            velocity=velocity,
            map_steps=MAP_STEPS,
            gradient_samples=gradients,
        )
        x = fmtt.sample(student, len(self.truth), steps=4, generator=torch.Generator().manual_seed(3))
        ratios = {
            name: [a / b for a, b in zip(values, errors.rmse["denoiser"], strict=True)]
            for name, values in errors.rmse.items()
        }
        cosines = {"cosine": slopes.cosine, "cosine_standard_error": slopes.cosine_standard_error}
        return {"rmse": errors.rmse, "ratio": ratios, **cosines, "mmd": self.mmd(x)}


def table(found: dict[str, dict[str, Any]], floor: float) -> str:
    """Ratios to the denoiser's RMSE, cosines and MMD²; smaller, larger, smaller is better."""
    columns = [f"{name}@{t:g}" for name in ("map_1", "map_4") for t in TIMES]
    lines = [
        f"{'RMSE / denoiser':24s}{'steps':>7s}" + "".join(f"{c:>11s}" for c in columns) + f"{'MMD²':>9s}"
    ]
    lines.append(f"{'teacher (floor)':24s}" + " " * (7 + 11 * len(columns)) + f"{floor:9.4f}")
    for name, run in found.items():
        values = [v for m in ("map_1", "map_4") for v in run["ratio"][m]]
        numbers = "".join(f"{v:11.3f}" for v in values)
        lines.append(f"{name:24s}{run['training_steps']:7d}{numbers}{run['mmd']:9.4f}")
    lines += ["", f"{'cosine of gradients':24s}{'':7s}" + "".join(f"{c:>11s}" for c in columns)]
    first = next(iter(found.values()))["cosine"]
    denoiser = "".join(f"{v:11.3f}" for v in first["denoiser"] * 2)
    lines.append(f"{'denoiser':24s}{'':7s}{denoiser}")
    for name, run in found.items():
        values = [v for m in ("map_1", "map_4") for v in run["cosine"][m]]
        lines.append(f"{name:24s}{'':7s}" + "".join(f"{v:11.3f}" for v in values))
    return "\n".join(lines)


def run_one(name: str, overrides: Sequence[str], args: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Distil and measure, unless that has been done with the same settings."""
    folder = args.out / name.replace(", ", "-").replace(" ", "-")
    config = load_config(CONFIG, [f"run_dir={folder}", *overrides, *args.override])
    asked = {"seconds": args.seconds, "trajectories": len(judge.truth), "config": to_yaml(config)}
    path = folder / "measured.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["asked"] == asked:
            return kept
    student, steps = distil(config, args.seconds)
    result = {"asked": asked, "training_steps": steps, **judge.measure(student, args.gradients)}
    write_json(path, result)
    print(f"{name}: {steps} steps", flush=True)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", choices=[*RUNS, "all"], default="all")
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--seconds", type=float, default=150.0, help="processor time of each run")
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument(
        "--gradients", type=int, default=32, help="samples whose reward gradients are compared"
    )
    parser.add_argument("--set", dest="override", nargs="+", default=[], help="key=value for every run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-clock"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = {n: o for group, part in RUNS.items() if args.runs in (group, "all") for n, o in part.items()}
    try:
        make_writable(args.out, "--out")
        for name in args.only or []:
            choose("--only", name, runs)
        judge = Judge(fmtt.load("clock-teacher"), args.trajectories)
        found = {n: run_one(n, o, args, judge) for n, o in runs.items() if not args.only or n in args.only}
        write_json(args.out / "summary.json", {"runs": found, "mmd_floor": judge.floor, "t": TIMES})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.seconds:g} s of processor time each, {args.trajectories} trajectories, reward {REWARD}")
    print(table(found, judge.floor))
    print(f"wrote {args.out / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
