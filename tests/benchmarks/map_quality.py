"""How good a map do the methods need? The comparison with maps stopped early. ``make bench-map-quality``.

Distils the demo's configuration once (eight minutes on one core) and takes the averaged weights at 10 %, 30 %
and 100 % of its steps; the shipped map, trained forty times longer, stands beside. The learning rate is not
brought down for the early stops: they are what a run that was cut off leaves. Every method that uses a map
is run with each, at the same budgets, hyperparameters and number of runs as in ``fmtt compare``; methods
that use the velocity alone are run once. All particles move on the teacher's velocity, whatever the map.

A finished stage or cell under OUT is kept. Prints a table, writes map_quality.png and OUT/summary.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.evaluation.comparison import cells, statistics
from fmtt.evaluation.comparison.cells import Setting
from fmtt.evaluation.comparison.statistics import Row
from fmtt.evaluation.lookahead import Trajectory, lookahead_errors, reference
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards import build
from fmtt.rewards.clock_judge import hits
from tests.benchmarks.constraints import TARGET, TOLERANCE
from tests.benchmarks.kept import digest, kept, write_png
from tests.benchmarks.map_quality_report import curves, printed
from train.checkpoints import checkpoints
from train.config import load_config
from train.export import export_run
from train.run import train

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "clock" / "demo.yaml"
TEACHER, SHIPPED = "clock-teacher", "clock-map"
SHARES = (0.1, 0.3, 1.0)
SAVES = 10
"""Checkpoints of the run: all stay."""
WITH_MAP = ("best_of_n_few_step", "multi_round", "reno", "fmrg", "fmtt_tilt", "fmtt_search")
WITHOUT = (
    *("best_of_n", "denoiser_guidance", "fk_difference", "das"),
    *("fmtt_tilt_denoiser", "fmtt_search_denoiser"),
)
TIMES = (0.0, 0.2, 0.4)
"""Where look-ahead errors are taken, which are then averaged."""


@dataclass(frozen=True)
class Size:
    """How much is spent.

    Attributes:
        overrides: of the configuration.
        budgets: network passes per run.
        trajectories: of the teacher, on which a map's error is measured.
    """

    overrides: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (256.0, 1024.0)
    runs: int = 64
    trajectories: int = 256


QUICK = Size(("max_steps=20", "batch_size=8"), (128.0,), 4, 16)


def distilled(out: Path, size: Size) -> dict[str, Path]:
    """Exports by name: the run stopped at each share of its steps."""
    settings = [f"run_dir={out / 'training'}", "log.wandb=false", "evaluate.num_samples=0", *size.overrides]
    most = load_config(CONFIG, settings).max_steps
    if most % SAVES:
        raise UserError(f"max_steps={most} must be a multiple of {SAVES}")
    saving = [f"checkpoint.every_steps={most // SAVES}", f"checkpoint.keep={SAVES}"]
    config = load_config(CONFIG, [*settings, *saving, f"evaluate.every_steps={most}"])
    train(config, "distill")
    found = {}
    for share in SHARES:
        name, step = f"{share:.0%}", round(share * most)
        found[name] = out / "maps" / f"step-{step}"
        if not (found[name] / "config.json").is_file():
            export_at(Path(config.run_dir), step, found[name])
    return found


def export_at(run_dir: Path, step: int, out: Path) -> None:
    """Export a run as it stood after ``step`` steps.

    Raises:
        UserError: when no checkpoint of that step is there.
    """
    path = dict(checkpoints(run_dir / "checkpoints")).get(step)
    if path is None:
        raise UserError(f"{run_dir} has no checkpoint of step {step}: delete it and train again")
    with tempfile.TemporaryDirectory(dir=run_dir.parent) as folder:
        stopped = Path(folder) / run_dir.name
        (stopped / "checkpoints").mkdir(parents=True)
        shutil.copy(run_dir / "config.yaml", stopped)
        shutil.copy(path, stopped / "checkpoints")
        export_run(stopped, out)


def error_ratio(flow_map: NeuralFlowMap, trajectory: Trajectory, teacher: NeuralFlowMap) -> dict[str, Any]:
    """RMSE of the 1- and 4-step look-ahead over the denoiser's, each averaged over TIMES."""
    errors = lookahead_errors(flow_map, trajectory, velocity=teacher.velocity, map_steps=(1, 4)).rmse
    denoiser = sum(errors["denoiser"])
    return {name: sum(errors[name]) / denoiser for name in ("map_1", "map_4")}


def judge(samples: Tensor) -> Tensor:
    """1 where the judge reads the time, else 0, (B,)."""
    return hits(samples, TARGET, TOLERANCE).double()


def compare(
    folder: Path, flow_map: NeuralFlowMap, methods: Sequence[str], size: Size, velocity: Any
) -> list[Row]:
    """Rows of the comparison, one per method and budget that is not too small."""
    setting = Setting(flow_map, build(f"clock:time={TARGET}"), velocity=velocity, judge=judge)
    plan = cells.plan(methods, {m: {b: int(b) for b in size.budgets} for m in methods}, size.runs)
    grouped: dict[tuple[str, float], list[cells.Runs]] = {}
    for cell in plan:
        if not cells.finished(folder, cell):
            cells.save(folder, cell, cells.run(setting, cell))
        runs = cells.load(folder, cell)
        if runs is not None:
            grouped.setdefault((cell.method, cell.amount), []).append(runs)
    print(f"{folder.name}: {len(plan)} cells done", flush=True)
    return [statistics.row(*key, statistics.join(parts)) for key, parts in grouped.items()]


def benchmark(out: Path, size: Size) -> dict[str, Any]:
    """Train, measure, compare, and write summary.json and the figure."""
    teacher = fmtt.load(TEACHER)
    places = {**distilled(out, size), "shipped": SHIPPED}
    generator = torch.Generator().manual_seed(1)
    shape, count = teacher.data_shape, size.trajectories
    trajectory: list[Trajectory] = []

    def ratio(flow_map: NeuralFlowMap) -> dict[str, Any]:
        if not trajectory:
            trajectory.append(
                reference(teacher.velocity, count, shape, times=TIMES, tol=1e-4, generator=generator)
            )
        return error_ratio(flow_map, trajectory[0], teacher)

    maps = []
    for name, place in places.items():
        flow_map, key = fmtt.load(place), name.replace(" %", "").replace("%", "")
        if name == "shipped":  # another is shipped with another version
            key = f"{key}-{digest(flow_map)}"
        measured = kept(out / "ratios", key, {"size": repr(size)}, lambda m=flow_map: ratio(m))
        rows = compare(out / "cells" / key, flow_map, WITH_MAP, size, teacher.velocity)
        maps.append({"name": name, "ratio": measured, "rows": [row._asdict() for row in rows]})
    flat = compare(out / "cells" / "no-map", fmtt.load(SHIPPED), WITHOUT, size, teacher.velocity)
    summary = {"runs": size.runs, "maps": maps, "without_map": [row._asdict() for row in flat]}
    write_json(out / "summary.json", summary)
    write_png(curves(summary), out / "map_quality.png")
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps and runs, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/map-quality"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        make_writable(args.out, "--out")
        summary = benchmark(args.out, QUICK if args.quick else Size())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nhit rate of {summary['runs']} runs ± standard error, clock:time={TARGET}")
    print(printed(summary))
    print(f"wrote {args.out / 'summary.json'} and map_quality.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
