"""Figures of a comparison: score against cost, and what each method returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fmtt.evaluation.comparison.statistics import Row
from fmtt.evaluation.style import canvas, curve, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNIT_LABELS = {
    "passes": "network passes per run (a backward counts 2)",
    "reward_calls": "reward calls per run",
    "seconds": "seconds per run, in a batch of runs",
}
ROOM = 0.03
"""Beyond the ends of an axis of rates, so that a marker at an end is seen whole."""


def pareto(rows: Sequence[Row], unit: str, scores: Mapping[str, str], rates: Sequence[str] = ()) -> Figure:
    """Score against what was really spent, a panel per score, a line per method.

    Args:
        scores: axis labels by the name of a Row's attribute, each with its ``_se``.
        rates: those of the scores that lie in [0, 1]; so do their axes.
    """
    methods = list(dict.fromkeys(r.method for r in rows))
    with canvas(5.6 * len(scores) + 2.2, 4.4) as figure:
        axes = panels(figure, 1, len(scores))
        for axis, (name, text) in zip(axes, scores.items(), strict=True):
            for k, method in enumerate(methods):
                mine = [r for r in rows if r.method == method]
                spent = [getattr(r, unit) for r in mine]
                values = [getattr(r, name) for r in mine]
                curve(axis, spent, values, method, k, [getattr(r, f"{name}_se") for r in mine])
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:.4g}")
            axis.set(xlabel=UNIT_LABELS[unit], ylabel=text)
            if name in rates:
                low, high = axis.get_ylim()
                axis.set_ylim(max(low, -ROOM), min(high, 1 + ROOM))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure
