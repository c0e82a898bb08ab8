"""report.html of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fmtt.evaluation.comparison import figures
from fmtt.evaluation.comparison.statistics import Row
from fmtt.evaluation.report import Report
from fmtt.evaluation.style import label, png

INTRO = """Every method works on the same model and reward, at the same budget per run, with hyperparameters
that are the same at every budget. A run returns the one sample that the optimised reward likes best; means
are over {runs} independent runs, ± one standard error.

A budget is counted in {unit}. Sizes that do not divide it are rounded down, so the cost that was really
spent is given beside."""

RESTORATION = """Distance to the model's own law: the returned sample is noised a little and restored by the
flow map, and the root mean square change is given. Samples of the model itself change by {base}."""


def report(
    title: str,
    rows: Sequence[Row],
    *,
    unit: str,
    judge: str | None,
    judge_is_rate: bool = False,
    base_restoration: float,
    missing: Sequence[str],
    pictures: Sequence[tuple[str, bytes]] = (),
) -> tuple[Report, bytes]:
    """(the page, the Pareto figure as PNG).

    Args:
        judge: what the judge measures; None without one. judge_is_rate: whether that is a share of runs.
        missing: methods left out and budgets that were too small, in words.
        pictures: captions and PNGs of samples.
    """
    scores = {"reward": "optimised reward"} | ({"judge": judge} if judge else {})
    pareto = png(figures.pareto(rows, unit, scores, ("judge",) if judge_is_rate else ()))
    page = Report(title, INTRO.format(runs=max(r.runs for r in rows), unit=figures.UNIT_LABELS[unit]))
    page.section("Score against cost").figure(
        pareto, "Score against the cost that was really spent, ± one standard error"
    )
    page.section("Numbers", "✓ marks the top of a budget, and what is within one standard error of it.")
    for amount in sorted({r.amount for r in rows}):
        mine = sorted((r for r in rows if r.amount == amount), key=lambda r: -_rank(r))
        page.table(*_table(mine, judge), f"Budget {amount:g}: {figures.UNIT_LABELS[unit]}")
    if missing:
        page.text("Left out, or budgets too small for a method: " + "; ".join(missing) + ".")
    page.section("Reading the table", RESTORATION.format(base=f"{base_restoration:.3g}"))
    if pictures:
        page.section("What was returned", "The first runs' samples, per method.")
        for caption, data in pictures:
            page.figure(data, caption)
    return page, pareto


def _rank(r: Row) -> float:
    return r.reward if math.isnan(r.judge) else r.judge


def _table(rows: Sequence[Row], judge: str | None) -> tuple[list[str], list[list[object]]]:
    columns = ["method", "top", *([judge] if judge else []), "reward", "distance to model", "diversity"]
    columns += ["passes", "reward calls", *(["judge calls"] if judge else []), "seconds"]
    cells: list[list[object]] = []
    for r in rows:
        judged = [f"{r.judge:.3g} ± {r.judge_se:.1g}"] if judge else []
        cells.append(
            [
                label(r.method),
                "✓" if r.top else "",
                *judged,
                f"{r.reward:.3g} ± {r.reward_se:.1g}",
                f"{r.restoration:.3g} ± {r.restoration_se:.1g}",
                r.diversity,
                r.passes,
                r.reward_calls,
                *([r.judge_calls] if judge else []),
                r.seconds,
            ]
        )
    return columns, cells
