"""The FMTT authors' two toy settings: their rows beside ours, exact draws' and the truth.

``python -m tests.benchmarks.toys`` prints the settings and the tables and writes them to OUT/tables.txt and
OUT/summary.json. In every column that measures distance to the truth the map's look-ahead meets each of the
others, from the paired differences of populations that start from the same noise: "won" or "lost" from three
standard errors on, else "level", as where both are as near as exact draws are. Exit status 1 if one is lost
or, in the view that was published, level although the other is measurably farther off than exact draws.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmtt.errors import UserError
from fmtt.evaluation import toys, toys_settings
from fmtt.evaluation.toys import Column, Contest, Measured, Row
from fmtt.evaluation.toys_settings import Toy
from fmtt.files import atomic_write, make_writable, write_json

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


def published(row: Row) -> str:
    """The authors' figures, or nothing."""
    if row.steps == RING_STEPS:
        return "{:.3f} / {:.2f} / {:.2f}".format(*PUBLISHED_RING[row.lookahead])
    seen = PUBLISHED_CYCLOID.get((row.steps, row.lookahead))
    return "" if seen is None else "{:.3f} / {:.3f} / {:.3f} / {}".format(*seen)


def view_table(toy: Toy, view: str, rows: Sequence[Row], titles: str) -> str:
    """One view of a setting: truth, exact draws, then every look-ahead."""
    known = toys_settings.truth(toy)
    truth = [f"{known.above:.4f}", f"{known.reward:.4f}", "0", "0", "0", "0", "", ""]
    lines = [["", "truth", "", *truth]]
    for row in rows:
        seen = getattr(row, view)
        lines.append(
            [
                str(row.steps or ""),
                row.lookahead,
                published(row),
                *(pm(column) for column in seen),
                f"{row.ess.value:.3f}",
                f"{row.resamples.value:.1f}",
            ]
        )
    columns = ["P(y>0)", "mean r", "P error", "r error", "MMD²", "SW2", "ESS", "resamples"]
    return table(["steps", "look-ahead", f"published {titles}", *columns], lines)


def contest_table(found: Sequence[Contest]) -> str:
    """How the map fared, most narrowly first."""
    lines = [
        [
            str(c.steps),
            c.view,
            c.column,
            c.other,
            f"{c.flow_map.value:.4f}",
            f"{c.value.value:.4f}",
            f"{c.significance:+.1f}",
            f"{c.off:+.1f} / {c.room:+.1f}",
            c.outcome,
        ]
        for c in sorted(found, key=lambda c: c.significance)
    ]
    columns = [
        "steps",
        "view",
        "column",
        "against",
        "map",
        "other",
        "nearer by (SE)",
        "map / other off exact draws (SE)",
    ]
    return table([*columns, "outcome"], lines)


def failed(toy: Toy, found: Contest) -> bool:
    """Whether the map is farther or, in the published view, not nearer where it could be."""
    could_win = found.view == toy.views[0] and found.room > toys.DECIDED
    return found.outcome == "lost" or (found.outcome == "level" and could_win)


def plain(value: Any) -> Any:
    """Rows and columns for JSON, without what their means are made of."""
    if isinstance(value, Column):
        return [value.value, value.standard_error]
    if isinstance(value, Row | Measured | Contest):
        return {name: plain(part) for name, part in value._asdict().items()}
    return value


def watch(items: Sequence[int], label: str):
    """Yield the items and print how long each took."""
    for k, item in enumerate(items):
        start = time.perf_counter()
        yield item
        print(f"{label}: {k + 1} of {len(items)}, {time.perf_counter() - start:.0f} s", flush=True)


class Found(NamedTuple):
    """A setting's tables, what is kept of it, and in how many columns the map is not nearest."""

    text: str
    kept: dict[str, Any]
    failures: int


def examine(
    toy: Toy, steps: tuple[int, ...], titles: str, seed: int, particles: int, populations: int
) -> Found:
    """Every look-ahead at every number of steps, beside the truth."""
    exact = toys.floor(toy, particles=particles, populations=populations)
    rows = toys.sweep(toy, steps, seed=seed, track=watch, particles=particles, populations=populations)
    found, known = toys.contests(toy, rows, exact), toys_settings.truth(toy)
    text = [f"{toy.name}: draws of the law itself, weighed by e^r, have an ESS of {known.plain_ess:.2g}"]
    title = f"{toy.name}, {populations} populations of {particles}, ± standard error"
    text += [f"{title}, {view}\n{view_table(toy, view, [exact, *rows], titles)}" for view in toy.views]
    tally = ", ".join(f"{sum(c.outcome == o for c in found)} {o}" for o in ("won", "level", "lost"))
    text.append(f"{toy.name}, the map's look-ahead against the others: {tally}\n{contest_table(found)}")
    kept = {
        "truth": known._asdict(),
        "rows": [plain(row) for row in (exact, *rows)],
        "contests": [{**plain(c), "outcome": c.outcome} for c in found],
    }
    return Found("\n\n".join(text), kept, sum(failed(toy, c) for c in found))


def main() -> int:
    """Exit status: 0 the map is nearest wherever it could be, 1 it is not, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--populations", type=int, default=64)
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
    start, text, kept, failures = time.perf_counter(), [str(toys_settings.__doc__).strip()], {}, 0
    for toy, steps, titles in (
        (toys_settings.ring(), (RING_STEPS,), "P / r / ESS"),
        (toys_settings.cycloid(), tuple(args.steps), "MMD / SW2 / r / resamples"),
    ):
        found = examine(toy, steps, titles, args.seed, **size)
        print(f"\n{found.text}\n", flush=True)
        text.append(found.text)
        kept[toy.name] = found.kept
        failures += found.failures
    won = not failures
    text.append("the map is nearest wherever it could be" if won else f"{failures} columns are not the map's")
    print(text[-1])
    seconds = round(time.perf_counter() - start, 1)
    with atomic_write(args.out / "tables.txt") as temporary:
        temporary.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    write_json(args.out / "summary.json", {**size, "seed": args.seed, **kept, "won": won, "seconds": seconds})
    print(f"wrote {args.out / 'tables.txt'} and summary.json in {seconds:.0f} s")
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())
