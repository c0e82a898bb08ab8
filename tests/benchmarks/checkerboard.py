"""Self-distillation on the 2-D checkerboard: every objective with one network and one budget.

``make bench-checkerboard`` runs this: it trains configs/checkerboard/NAME.yaml for each NAME, a quarter of an
hour each, and measures 1/2/4/8/16-step samples beside the published figures. A run that was interrupted goes
on where it stopped when the same command is given again.

KL(p || q) is between cells: every square of the board is cut into PER_SIDE x PER_SIDE of them, so that 512
hold the data, with p = 1 / 512 each; q = (n + 1/2) / (N + 256) where n of N samples fall into a cell,
so that samples outside of the dark squares count as missing. For perfect samples its mean is about
511 / (2 N); the row ``data`` shows what fresh data give. The estimator behind the published figures may be
another one. Beside it the sliced 2-Wasserstein distance (64 directions) and the squared MMD (Gaussian kernel
of width BANDWIDTH), both to other fresh data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fmtt
from data.procedural import BOARD_CELLS, BOARD_HALF_SIDE, procedural
from fmtt.errors import UserError
from fmtt.evaluation.distances import PROJECTIONS, directions, mmd, sliced_wasserstein
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from train.build import choose
from train.checkpoints import final_checkpoint
from train.config import load_config
from train.export import rebuild
from train.run import train

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "checkerboard"
OBJECTIVES = ("lsd", "psd_m", "psd_u", "esd", "lmd", "emd")
STEPS = (1, 2, 4, 8, 16)
PUBLISHED = {
    "lsd": (0.086, 0.077, 0.071, 0.070, 0.071),
    "psd_m": (0.146, 0.089, 0.081, 0.072, 0.069),
    "psd_u": (0.111, 0.107, 0.075, 0.073, 0.068),
    "esd": (0.098, 0.092, 0.083, 0.082, 0.075),
}
"""KL at STEPS (arXiv 2505.18825)."""
PER_SIDE = 8
"""Cells along the side of a square of the board."""
BANDWIDTH = 0.2
MMD_SAMPLES = 8192
TRUTH_SEED, FRESH_SEED = 2**31, 2**31 + 1
"""Training draws its points with other seeds."""


class Measured(NamedTuple):
    """Of samples: KL in nats, share outside of the dark squares, sliced W2 in data units, squared MMD."""

    kl: float
    outside: float
    sw2: float
    mmd: float


def cell_counts(x: Tensor, per_side: int = PER_SIDE) -> Tensor:
    """How many of x (N, 2) fall into each cell of the dark squares, (BOARD_CELLS² / 2 per_side²,) float64."""
    side = BOARD_CELLS * per_side
    index = ((x.double() + BOARD_HALF_SIDE) * (side / (2 * BOARD_HALF_SIDE))).floor().long()
    index = index[((index >= 0) & (index < side)).all(1)]
    counts = torch.bincount(index[:, 0] * side + index[:, 1], minlength=side**2).double().reshape(side, side)
    square = torch.arange(side) // per_side
    return counts[(square[:, None] + square[None, :]) % 2 == 0]


def kl(x: Tensor, per_side: int = PER_SIDE) -> tuple[float, float]:
    """(KL(p || q) of the module's docstring, share of x (N, 2) outside of the dark squares)."""
    counts = cell_counts(x, per_side)
    q = (counts + 0.5) / (len(x) + 0.5 * len(counts))
    return float(-(q * len(counts)).log().mean()), 1 - float(counts.sum()) / len(x)


def data(count: int, seed: int) -> Tensor:
    """Points (count, 2) of the checkerboard."""
    return procedural("checkerboard").batch(torch.arange(count), seed).x


def measure(x: Tensor, truth: Tensor) -> Measured:
    """Compare samples with as many points of the data, both (N, 2)."""
    lines = directions(2, PROJECTIONS, torch.Generator().manual_seed(0), x)
    few = slice(0, MMD_SAMPLES)
    return Measured(
        *kl(x), float(sliced_wasserstein(x, truth, lines)), float(mmd(x[few], truth[few], BANDWIDTH))
    )


@torch.no_grad()
def measure_map(flow_map: NeuralFlowMap, truth: Tensor) -> dict[str, dict[str, float]]:
    """By number of steps, from the same noise."""
    found = {}
    for steps in STEPS:
        noise = torch.Generator().manual_seed(1)
        x = fmtt.sample(flow_map, len(truth), steps=steps, generator=noise, chunk_size=4096)
        found[str(steps)] = measure(x, truth)._asdict()
    return found


def run_one(name: str, args: argparse.Namespace, truth: Tensor) -> dict[str, Any]:
    """Train ``name``, or go on with it, and measure it; what was measured before is read."""
    folder = args.out / name
    config = load_config(CONFIGS / f"{name}.yaml", [f"run_dir={folder}", *args.override])
    kept = folder / "measured.json"
    start = time.process_time()
    train(config, "distill")
    spent = time.process_time() - start
    steps, content = final_checkpoint(folder)
    if kept.is_file():
        old = json.loads(kept.read_text())
        if old["training_steps"] == steps and old["samples"] == len(truth):
            return old
    result = {"training_steps": steps, "samples": len(truth), "processor_seconds_since_resumed": spent}
    result["map"] = measure_map(rebuild(content), truth)
    write_json(kept, result)
    return result


def row(name: str, values: Sequence[float], form: str = "7.3f") -> str:
    """A name and a number for every step count."""
    return f"{name:18s}" + "".join(f"{value:{form}}" for value in values)


def table(found: dict[str, dict[str, Any]], floor: Measured) -> str:
    """KL beside the published row, then the other distances."""
    lines = [row("KL, steps:", STEPS, "7d"), row("data (floor)", [floor.kl] * len(STEPS))]
    for name, result in found.items():
        lines.append(row(name, [result["map"][str(k)]["kl"] for k in STEPS]))
        if name in PUBLISHED:
            lines.append(row("  published", PUBLISHED[name]))
    for column, title, form in (
        ("outside", "share outside", "7.3f"),
        ("sw2", "sliced W2", "7.3f"),
        ("mmd", "MMD² x 1000", "7.3f"),
    ):
        scale = 1000 if column == "mmd" else 1
        lines += ["", row(f"{title}:", STEPS, "7d")]
        lines.append(row("data (floor)", [scale * getattr(floor, column)] * len(STEPS), form))
        for name, result in found.items():
            lines.append(row(name, [scale * result["map"][str(k)][column] for k in STEPS], form))
    return "\n".join(lines)


def best(found: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """(the objective of the least mean KL, whether it is at or under the published LSD row throughout)."""
    curves = {name: [result["map"][str(k)]["kl"] for k in STEPS] for name, result in found.items()}
    name = min(curves, key=lambda n: sum(curves[n]))
    return name, all(a <= b for a, b in zip(curves[name], PUBLISHED["lsd"], strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 the best objective meets the published LSD row, 1 it does not, 2 a wrong argument."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", dest="override", nargs="+", default=[], help="key=value for every run")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--samples", type=int, default=65536)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-checkerboard"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # small matrices gain nothing from more
    truth = data(args.samples, TRUTH_SEED)
    floor, found = measure(data(args.samples, FRESH_SEED), truth), {}
    try:
        make_writable(args.out, "--out")
        for name in args.objectives:
            choose("--objectives", name, OBJECTIVES)
        for name in args.objectives:
            found[name] = run_one(name, args, truth)
            summary = {"floor": floor._asdict(), "published": PUBLISHED, "objectives": found}
            write_json(args.out / "summary.json", summary)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name, met = best(found)
    print(table(found, floor))
    verdict = "at or under" if met else "not under"
    print(f"\nbest: {name}, {verdict} the published LSD row at every step count")
    write_json(args.out / "summary.json", {**summary, "best": name, "met": met})
    print(f"wrote {args.out / 'summary.json'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
