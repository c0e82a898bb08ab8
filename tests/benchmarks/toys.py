"""The FMTT authors' two toy settings: their rows beside ours and the truth. ``make toys`` runs this.

Prints both tables and writes them to OUT/summary.json; exit status 1 if the map's look-ahead loses a column
that measures distance to the truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fmtt.errors import UserError
from fmtt.evaluation import toys, toys_settings
from fmtt.evaluation.toys import Column, Row
from fmtt.evaluation.toys_settings import Toy, Truth
from fmtt.files import make_writable, write_json

RING_STEPS = 400
CYCLOID_STEPS = (50, 100, 200, 500)
PUBLISHED_RING = {
    "flow_map": (0.830, -0.13, 0.97),
    "denoiser": (0.799, -0.20, 0.95),
    "none": (0.612, -2.75, 0.72),
}
"""P(y > 0), mean r, ESS."""
PUBLISHED_CYCLOID = {
    (50, "none"): (0.996, 0.578, 0.911, 46),
    (50, "denoiser"): (3.973, 0.988, 0.917, 47),
    (50, "flow_map"): (0.043, 0.060, 0.621, 5),
    (100, "none"): (0.460, 0.443, 0.958, 64),
    (100, "denoiser"): (4.131, 0.979, 0.949, 81),
    (100, "flow_map"): (0.065, 0.083, 0.925, 10),
    (200, "none"): (4.332, 0.902, 0.977, 84),
    (200, "denoiser"): (3.016, 0.942, 0.964, 135),
    (200, "flow_map"): (0.065, 0.126, 0.967, 9),
    (500, "none"): (3.459, 0.857, 0.972, 155),
    (500, "denoiser"): (3.717, 0.977, 0.976, 198),
    (500, "flow_map"): (0.031, 0.089, 0.971, 6),
}
"""MMD, SW2, reward, resamples; their reward and the units of their MMD are not published."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def pm(column: Column, digits: int = 4) -> str:
    """Value ± standard error."""
    return f"{column.value:.{digits}f} ± {column.standard_error:.{digits}f}"


def ring_table(rows: Sequence[Row], known: Truth) -> str:
    """The eight modes: guided particles as published, then weighted estimates."""
    lines = [
        [
            "truth",
            "",
            f"{known.above:.4f}",
            f"{known.reward:.4f}",
            "",
            f"{known.above:.4f}",
            f"{known.reward:.4f}",
        ]
    ]
    for row in rows:
        seen = PUBLISHED_RING.get(row.lookahead)
        published = "" if seen is None else f"{seen[0]:.3f} / {seen[1]:.2f} / {seen[2]:.2f}"
        lines.append(
            [
                row.lookahead,
                published,
                pm(row.guided_above),
                pm(row.guided_reward),
                f"{row.ess.value:.3f}",
                pm(row.above),
                pm(row.reward),
            ]
        )
    columns = ["look-ahead", "published P / r / ESS", "P(y>0)", "mean r", "ESS", "P, weighted", "r, weighted"]
    return table(columns, lines)


def cycloid_table(rows: Sequence[Row], known: Truth) -> str:
    """The cycloid ring by number of steps."""
    lines = [["", "truth", "", "0", "0", f"{known.reward:.4f}", "0", ""]]
    for row in rows:
        seen = PUBLISHED_CYCLOID.get((row.steps, row.lookahead))
        published = "" if seen is None else "{:.3f} / {:.3f} / {:.3f} / {}".format(*seen)
        lines.append(
            [
                str(row.steps or ""),
                row.lookahead,
                published,
                pm(row.mmd),
                pm(row.sw2),
                pm(row.reward),
                pm(row.reward_error),
                f"{row.resamples.value:.1f}",
            ]
        )
    columns = ["steps", "look-ahead", "published MMD / SW2 / reward / resamples", "MMD²", "SW2", "reward"]
    return table([*columns, "reward error", "resamples"], lines)


def plain(toy: Toy, rows: Sequence[Row]) -> dict[str, object]:
    """A setting's results for JSON."""
    return {
        "truth": toys_settings.truth(toy)._asdict(),
        "rows": [row._asdict() for row in rows],
        "contests": [{**c._asdict(), "won": c.won} for c in toys.contests(toy, list(rows))],
    }


def watch(items: Sequence[int], label: str):
    """Yield the items and print how long each took."""
    for k, item in enumerate(items):
        start = time.perf_counter()
        yield item
        print(f"{label}: {k + 1} of {len(items)}, {time.perf_counter() - start:.0f} s", flush=True)


def main() -> int:
    """Exit status: 0 the map wins everywhere, 1 it does not, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--populations", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(CYCLOID_STEPS), help="of the cycloid ring"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/toys"))
    args = parser.parse_args()
    size = {"particles": args.particles, "populations": args.populations}
    try:
        make_writable(args.out, "--out")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # small tensors gain nothing from more
    start, found, won = time.perf_counter(), {}, True
    for toy, steps, show in (
        (toys_settings.ring(), (RING_STEPS,), ring_table),
        (toys_settings.cycloid(), tuple(args.steps), cycloid_table),
    ):
        rows = toys.sweep(toy, steps, seed=args.seed, track=watch, **size)
        shown = [toys.floor(toy, **size), *rows]
        print(f"\n{toy.name}, {args.populations} populations of {args.particles}, ± standard error")
        print(show(shown, toys_settings.truth(toy)) + "\n")
        found[toy.name] = plain(toy, shown)
        lost = [c for c in toys.contests(toy, rows) if not c.won]
        for c in lost:
            print(f"the map loses {c.column} to {c.other} at {c.steps} steps: {c.flow_map} against {c.value}")
        won = won and not lost
    seconds = round(time.perf_counter() - start, 1)
    write_json(
        args.out / "summary.json", {**size, "seed": args.seed, **found, "won": won, "seconds": seconds}
    )
    print(f"wrote {args.out / 'summary.json'} in {seconds:.0f} s")
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())
