"""What the comparison over maps of different quality found: one figure, one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmtt.evaluation.style import canvas, colour, curve, label, panels
from tests.benchmarks.kept import shown, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(summary: dict[str, Any]) -> Figure:
    """Hit rate against the look-ahead error of the map, a panel per budget, a line per method.

    Args:
        summary: what tests.benchmarks.map_quality found.
    """
    maps = sorted(summary["maps"], key=lambda m: -m["ratio"]["map_1"])
    budgets = sorted({row["amount"] for m in maps for row in m["rows"]})
    x = [m["ratio"]["map_1"] for m in maps]
    with canvas(5.6 * len(budgets) + 2.8, 5.0) as figure:
        axes = panels(figure, 1, len(budgets))
        for axis, amount in zip(axes, budgets, strict=True):
            for row in (r for r in summary["without_map"] if r["amount"] == amount):
                tint, value, error = colour(row["method"]), row["judge"], row["judge_se"]
                axis.axhline(value, color=tint, linestyle="--", linewidth=1.2, label=label(row["method"]))
                axis.axhspan(value - error, value + error, color=tint, alpha=0.08, linewidth=0)
            for k, method in enumerate(dict.fromkeys(r["method"] for m in maps for r in m["rows"])):
                known = [
                    (m["ratio"]["map_1"], r)
                    for m in maps
                    for r in m["rows"]
                    if (r["method"], r["amount"]) == (method, amount)
                ]
                values, errors = [r["judge"] for _, r in known], [r["judge_se"] for _, r in known]
                curve(axis, [a for a, _ in known], values, method, k, errors)
            for a, m in zip(x, maps, strict=True):
                axis.annotate(
                    m["name"], (a, 1.04), ha="center", fontsize=8, color="#555555", annotation_clip=False
                )
            axis.invert_xaxis()
            axis.set(xlabel="look-ahead RMSE of the map over the denoiser's (better to the right)")
            axis.set(ylabel=f"hit rate by the judge, {summary['runs']} runs")
            axis.set_title(f"{amount:g} passes per run", pad=16)
            axis.set_ylim(-0.02, 1.03)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def printed(summary: dict[str, Any]) -> str:
    """Hit rate of every method at every budget, a column per map."""
    maps = summary["maps"]
    lines = [["look-ahead error / denoiser's", "", *(f"{m['ratio']['map_1']:.2f}" for m in maps)]]
    for first in maps[0]["rows"]:
        key = (first["method"], first["amount"])
        same = [r for m in maps for r in m["rows"] if (r["method"], r["amount"]) == key]
        lines.append([key[0], f"{key[1]:g}", *(shown((r["judge"], r["judge_se"])) for r in same)])
    for r in summary["without_map"]:
        same = [shown((r["judge"], r["judge_se"]))] + [""] * (len(maps) - 1)
        lines.append([r["method"], f"{r['amount']:g}", *same])
    return table(["method", "budget", *(m["name"] for m in maps)], lines)
