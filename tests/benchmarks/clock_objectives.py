"""Every objective on the clock's velocity model at equal processor time: what a flow map gets from it.

``make bench-clock`` runs this, in about 25 minutes. Each run distils the shipped teacher for --seconds of
processor time, its learning rate falling to the end of that time, and is then measured against the
teacher's ODE: RMSE of the 1- and 4-step look-ahead relative to the denoiser's, cosine of the reward's
gradient through the look-ahead with the one through the ODE, and the MMD² of 1- and 4-step samples to the
teacher's. ``--runs times`` asks whether maps can be trained for look-ahead: the same objective with uniform
times, and with times that look ahead, from two seeds.

Runs that are done are kept in OUT and not repeated. OUT/summary.json and OUT/table.txt grow with every run.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fmtt
from data.module import open_batches
from fmtt.cli.same_folder import fingerprint
from fmtt.errors import UserError
from fmtt.files import atomic_write, make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from tests.benchmarks.clock_judge import MAP_STEPS, REWARD, TIMES, Judge, difference, rmse_ratio
from train.build import build_module, choose
from train.config import Config, load_config, to_yaml
from train.losses import times_of
from train.losses.base import sample_path

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "clock" / "demo.yaml"
TEACHER = "clock-teacher"
SEEDS = (0, 1)
TIMED = ("emd", "mean_flow")
"""The objectives of ``--runs times``: of those that no velocity at t enters, which at t = 1 is not known."""
MAPS = [f"map_{k}" for k in MAP_STEPS]


def times(
    distribution: str, diagonal: float, endpoint: float = 0.0, whole: float = 0.0, midpoint: str = "middle"
) -> list[str]:
    """Overrides that leave none of the demo's times."""
    given = {"distribution": distribution, "diagonal": diagonal, "endpoint": endpoint}
    given |= {"whole": whole, "midpoint": midpoint}
    return [f"times.{key}={value}" for key, value in given.items()]


# The teacher predicts endpoints: its velocity at t is off by their error over 1 - t.
LEFT = "objective.time_left_power=1"
LAGRANGIAN = [*times("uniform", 0.1, 0.2), LEFT]
# The error of the landing point.
LANDING = "weighting.gap_power=2"
UNIFORM = [*times("uniform", 0.0, 0.2), LANDING]
LOOKAHEAD = [*times("lookahead", 0.0, 0.5), "times.s_density=[3,2,1]", LANDING]


def run_name(objective: str, *, ahead: bool, seed: int) -> str:
    """Of a run of ``--runs times``; the first seed's uniform one is that of ``--runs objectives``."""
    return objective + " lookahead" * ahead + f" seed {seed}" * (seed > 0)


RUNS: dict[str, dict[str, list[str]]] = {
    "objectives": {
        "trajectory": ["objective.name=trajectory", *times("uniform", 0.05, whole=0.95, midpoint="uniform")],
        "psd": ["objective.name=psd", *times("uniform", 0.5, midpoint="uniform"), LEFT],
        **{name: [f"objective.name={name}", *LAGRANGIAN] for name in ("lmd", "lsd", "tvm")},
        **{name: [f"objective.name={name}", *UNIFORM] for name in ("emd", "mean_flow", "esd", "consistency")},
    },
    "times": {
        run_name(name, ahead=ahead, seed=seed): [
            f"objective.name={name}",
            *(LOOKAHEAD if ahead else UNIFORM),
            *[f"seed={seed}"] * (seed > 0),
        ]
        for seed in SEEDS
        for name in TIMED
        for ahead in (False, True)
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
    while seconds > 0 and (share := (time.process_time() - start) / seconds) < 1:
        warm = min(1.0, (step + 1) / max(1, config.optimizer.warmup))
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * warm * max(config.optimizer.final, 1 - share)
        x_1 = batches.batch(step).x
        x_0 = torch.randn(x_1.shape, generator=generator)
        at = module.times.sample(len(x_1), generator, step=step)
        path = sample_path(student.interpolant, x_0, x_1, at.s)
        out = objective(student, module.velocity(), path, at, None)
        optimizer.zero_grad()
        own = times_of(config.objective.weights(), at) or at
        module.weighting(out.per_sample, own).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip or math.inf)
        optimizer.step()
        step += 1
        module.ema.update(student, step)
    with module.ema.swapped_in(student):
        return copy.deepcopy(student).eval().requires_grad_(False), step


def table(found: dict[str, dict[str, Any]], judge: Judge) -> str:
    """Ratios to the denoiser's RMSE, MMD² and cosines; smaller, smaller, larger is better."""
    columns = [f"{name}@{t:g}" for name in MAPS for t in TIMES]
    head = "".join(f"{c:>10s}" for c in columns)
    distances = "".join(f"{f'MMD² {k}':>9s}" for k in MAP_STEPS)
    lines = [f"{'RMSE / denoiser':24s}{'steps':>7s}{head}{distances}"]
    floor = f"{judge.floor:9.4f}" * len(MAP_STEPS)
    lines.append(f"{'teacher (floor)':24s}" + " " * (7 + 10 * len(columns)) + floor)
    for name, run in found.items():
        numbers = "".join(f"{v:10.3f}" for m in MAPS for v in run["ratio"][m])
        numbers += "".join(f"{run['mmd'][str(k)]:9.4f}" for k in MAP_STEPS)
        lines.append(f"{name:24s}{run['training_steps']:7d}{numbers}")
    lines += ["", f"{'cosine of gradients':31s}{head}"]
    denoiser = [sum(v) / len(v) for v in judge.denoiser_cosine]
    lines.append(f"{'denoiser':31s}" + "".join(f"{v:10.3f}" for v in denoiser * len(MAPS)))
    for name, run in found.items():
        lines.append(f"{name:31s}" + "".join(f"{v:10.3f}" for m in MAPS for v in run["cosine"][m]))
    return "\n".join(lines)


def look_ahead(found: dict[str, dict[str, Any]]) -> str:
    """Times that look ahead against uniform ones: RMSE ratio and change of the cosine, per objective and
    seed, with standard errors over the samples, which both runs share."""
    head = "".join(f"{f'{name}@{t:g}':>16s}" for name in MAPS for t in TIMES)
    lines = []
    for what, title, compare in (
        ("squared", "RMSE, lookahead / uniform", rmse_ratio),
        ("cosine", "cosine, lookahead - uniform", difference),
    ):
        rows = []
        for objective in TIMED:
            for seed in SEEDS:
                ahead, plain = (found.get(run_name(objective, ahead=a, seed=seed)) for a in (True, False))
                if ahead is None or plain is None:
                    continue
                pairs = [
                    compare(a, b)
                    for m in MAPS
                    for a, b in zip(ahead["samples"][what][m], plain["samples"][what][m], strict=True)
                ]
                numbers = "".join(f"{f'{p.value:.3f} ± {p.standard_error:.3f}':>16s}" for p in pairs)
                rows.append(f"{f'{objective} seed {seed}':30s}{numbers}")
        if rows:
            lines += ["", f"{title:30s}{head}", *rows]
    return "\n".join(lines)


def run_one(name: str, overrides: Sequence[str], args: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Distil and measure, unless that has been done with the same settings."""
    folder = args.out / name.replace(" ", "-")
    config = load_config(CONFIG, [f"run_dir={folder}", *overrides, *args.override])
    asked = {"seconds": args.seconds, "trajectories": len(judge.truth), "gradients": args.gradients}
    asked |= {"config": to_yaml(config), "teacher": fingerprint(config.teacher)}
    path = folder / "measured.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["asked"] == asked:
            return kept
    student, steps = distil(config, args.seconds)
    result = {"asked": asked, "training_steps": steps, **judge.measure(student)}
    write_json(path, result)
    print(f"{name}: {steps} steps", flush=True)
    return result


def write(found: dict[str, dict[str, Any]], judge: Judge, args: argparse.Namespace) -> str:
    """Leave what there is so far in OUT; returns the tables."""
    runs = {n: {k: v for k, v in run.items() if k != "samples"} for n, run in found.items()}
    summary = {"t": TIMES, "mmd_floor": judge.floor, "runs": runs}
    write_json(args.out / "summary.json", summary)
    title = f"{args.seconds:g} s of processor time each, {args.trajectories} trajectories, reward {REWARD}"
    text = "\n".join([title, table(found, judge), look_ahead(found)])
    with atomic_write(args.out / "table.txt") as temporary:
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
    return text.rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", choices=[*RUNS, "all"], default="all")
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--seconds", type=float, default=85.0, help="processor time of each run")
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument(
        "--gradients", type=int, default=64, help="samples whose reward gradients are compared"
    )
    parser.add_argument("--set", dest="override", nargs="+", default=[], help="key=value for every run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-clock"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = {n: o for group, part in RUNS.items() if args.runs in (group, "all") for n, o in part.items()}
    found, text = dict[str, dict[str, Any]](), ""
    try:
        make_writable(args.out, "--out")
        for name in args.only or []:
            choose("--only", name, runs)
        teacher = fmtt.load(TEACHER)
        kept = args.out / f"judge-{fingerprint(TEACHER)}.safetensors"
        judge = Judge(teacher, args.trajectories, args.gradients, kept)
        # Where every student begins: the steps of its map are Euler steps of the teacher.
        found["untrained"] = {"training_steps": 0, **judge.measure(teacher)}
        for name, overrides in runs.items():
            if not args.only or name in args.only:
                found[name] = run_one(name, overrides, args, judge)
                text = write(found, judge, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"wrote {args.out / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
