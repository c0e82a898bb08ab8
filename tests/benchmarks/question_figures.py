"""Figures and tables of the open questions; every bar is one standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmtt.evaluation.style import canvas, colour, curve, label, panels
from tests.benchmarks.advantage import LOOKAHEADS, METHODS
from tests.benchmarks.ess import Point
from tests.benchmarks.kept import shown, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILT = {"denoiser": "fmtt_denoiser", "flow_map": "fmtt_flow_map"}
"""Whose colour and name a look-ahead has."""
MARKERS = ("o", "s", "^", "D", "v")


def twins() -> list[str]:
    """The methods of the comparison with the map's look-ahead, each followed by its twin."""
    return [name for method in METHODS for name in (method, f"{method}_denoiser")]


def advantage(levels: Sequence[dict[str, Any]], xlabel: str, *, logarithmic: bool) -> Figure:
    """Hit rates, spread of log Z and ESS against what makes the task harder, a line per look-ahead.

    Args:
        levels: results of tests.benchmarks.questions, in order, with ``x``, ``returned`` and ``weighted``.
    """
    x = [level["x"] for level in levels] if logarithmic else list(range(len(levels)))
    budgets = list(levels[0]["returned"])
    with canvas(3.8 * (len(budgets) + 3) + 2.5, 4.0) as figure:
        axes = panels(figure, 1, len(budgets) + 3)
        for axis, passes in zip(axes, budgets, strict=False):
            for name in twins():
                _line(axis, x, [level["returned"][passes][name]["rates"]["all"] for level in levels], name)
            axis.set(ylabel="hit rate by the judge", title=f"One sample returned on {passes} passes")
        weighed = axes[len(budgets) :]
        for lookahead in LOOKAHEADS:
            cells = [level["weighted"][lookahead] for level in levels]
            rates = [cell["rates"]["all"] for cell in cells]
            for axis, values in zip(weighed, (rates, *_columns(cells)), strict=True):
                _line(axis, x, values, TILT[lookahead])
        weighed[0].set(ylabel="hit rate of weighted samples", title="Tilt with path weights")
        weighed[1].set(ylabel="sd over populations (nats)", title="Spread of log Z", yscale="log")
        weighed[2].set(ylabel="effective sample size (fraction)", title="ESS, mean over steps")
        for axis in axes:
            axis.set(xlabel=xlabel)
            if axis is not weighed[1]:
                axis.set_ylim(bottom=0)
            if logarithmic:
                axis.set_xscale("log", base=2)
            axis.set_xticks(x, [str(level["label"]) for level in levels])
            axis.minorticks_off()
        handles = [*axes[0].get_legend_handles_labels()[0], *weighed[0].get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside right upper")
    return figure


def _columns(cells: Sequence[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    return [cell["log_z_spread"] for cell in cells], [cell["ess"] for cell in cells]


def _line(axis: Axes, x: Sequence[float], estimates: Sequence[Sequence[float]], name: str) -> None:
    curve(axis, x, [e[0] for e in estimates], name, standard_error=[e[1] for e in estimates])


def scatter(
    found: Mapping[str, Sequence[Point]], agreed: dict[str, dict[str, Any]], num_particles: int
) -> Figure:
    """Measured against foretold ESS with the line y = x, a panel per way of resampling.

    Args:
        found, agreed: by the way of resampling: points, and by look-ahead the statistics of all of them.
        num_particles: of the runs; an ESS measured at the end cannot fall below one particle.
    """
    with canvas(11.0, 5.0) as figure:
        for axis, (how, points) in zip(panels(figure, 1, len(found)), found.items(), strict=True):
            counts = sorted({p.steps for p in points})
            for lookahead in LOOKAHEADS:
                for steps, marker in zip(counts, MARKERS, strict=False):
                    mine = [p for p in points if (p.lookahead, p.steps) == (lookahead, steps)]
                    axis.errorbar(
                        [p.foretold for p in mine],
                        [p.measured for p in mine],
                        [p.error for p in mine],
                        color=colour(TILT[lookahead]),
                        label=f"{lookahead.replace('_', ' ')}, {steps} steps",
                        marker=marker,
                        linestyle="none",
                        elinewidth=1,
                    )
            low = min(min(p.foretold, max(p.measured, 1e-4)) for p in points) / 1.5
            axis.plot([low, 1], [low, 1], color="#555555", linewidth=1, label="y = x")
            if how == "never":
                axis.axhline(1 / num_particles, color="#555555", linestyle=":", label="one particle")
            rank = agreed[how]["all"]["foretold_rank_correlation"]
            axis.set(xscale="log", yscale="log", xlabel="foretold: exp(-length² / steps), pilot's length")
            bottom = 0.5 / num_particles if how == "never" else low
            axis.set(
                xlim=(low, 1.3), ylim=(bottom, 1.3), title=f"resampled {how}; rank correlation {rank:.2f}"
            )
            axis.set(
                ylabel="measured ESS of the whole run" if how == "never" else "measured ESS, product of steps"
            )
            axis.legend(fontsize=8)
    return figure


def advantage_table(levels: Sequence[dict[str, Any]]) -> str:
    """A line per level and look-ahead."""
    lines = []
    for level in levels:
        for lookahead in reversed(LOOKAHEADS):
            end = "" if lookahead == "flow_map" else "_denoiser"
            cells = [runs[m + end] for runs in level["returned"].values() for m in METHODS]
            hits = [shown(cell["rates"]["all"]) for cell in cells]
            cell = level["weighted"][lookahead]
            weights = [shown(cell["rates"]["all"]), shown(cell["log_z_spread"]), shown(cell["ess"])]
            weights += [shown(cell["discrepancy"]), shown(cell["pooled_log_z"])]
            lines.append([str(level["label"]), lookahead, *hits, *weights])
    titles = [f"{label(m).removesuffix(', map')}, {b}" for b in levels[0]["returned"] for m in METHODS]
    head = ["", "look-ahead", *titles, "weighted hits", "sd log Z", "ESS"]
    return table([*head, "discrepancy", "pooled log Z"], lines)


def rates_table(levels: Sequence[dict[str, Any]]) -> str:
    """Every constraint's own rate, a line per level, budget and method."""
    cells = [cell for level in levels for runs in level["returned"].values() for cell in runs.values()]
    names = list(dict.fromkeys(name for cell in reversed(cells) for name in cell["rates"]))
    lines = []
    for level in levels:
        for passes, runs in level["returned"].items():
            for method, cell in runs.items():
                rates = [shown(cell["rates"][n]) if n in cell["rates"] else "" for n in names]
                lines.append([str(level["label"]), passes, method, *rates])
    return table(["", "passes", "method", *names], lines)


def ess_table(found: Mapping[str, Sequence[Point]], agreed: dict[str, dict[str, Any]]) -> str:
    """Every point, then how well they agree."""
    lines = [
        [how, p.lookahead, f"{p.sharpness:g}", str(p.steps), f"{p.foretold:.3f}", f"{p.closed_form:.3f}"]
        + [f"{p.measured:.3f} ± {p.error:.3f}"]
        for how, points in found.items()
        for p in points
    ]
    head = ["resampled", "look-ahead", "sharpness", "steps", "pilot", "closed form", "measured"]
    summary = [
        [how, which, *(f"{value:.3f}" for key, value in values.items() if key != "points")]
        for how, groups in agreed.items()
        for which, values in groups.items()
    ]
    titles = [
        f"{who}: {what}" for who in ("pilot", "closed form") for what in ("rank corr.", "|error|", "error")
    ]
    return f"{table(head, lines)}\n\n{table(['resampled', 'look-ahead', *titles], summary)}"
