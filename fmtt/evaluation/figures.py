"""Curves, each a Figure: errors over time, sampler diagnostics, hit rates against budget, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fmtt.evaluation.ascent import RewardErrors
from fmtt.evaluation.lookahead import LookaheadErrors
from fmtt.evaluation.style import canvas, colour, curve, label, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIME_LABEL = "time t (0 = noise, 1 = data)"
LOGARITHMIC = 20.0
"""Ratio of the largest error to the smallest beyond which a linear axis would hide most of the curves."""


def rmse_curves(errors: LookaheadErrors, *, reference: str = "the reference ODE") -> Figure:
    """RMSE against the reference endpoint over t, one line per look-ahead."""
    with canvas(6.4, 4.0) as figure:
        (axis,) = panels(figure, 1, 1)
        for k, (name, values) in enumerate(errors.rmse.items()):
            curve(axis, errors.t, values, name, k, errors.standard_error.get(name))
        axis.set(
            xlabel=TIME_LABEL,
            ylabel="RMSE per coordinate (data units)",
            title=f"Look-ahead error against the endpoint of {reference}",
        )
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure


def reward_curves(errors: RewardErrors) -> Figure:
    """Error of the look-ahead reward, and the cosine of its gradient with the true one, over t."""
    with canvas(10.5 if errors.cosine else 6.4, 4.0) as figure:
        axes = panels(figure, 1, 2 if errors.cosine else 1)
        for k, (name, values) in enumerate(errors.reward_rmse.items()):
            curve(axes[0], errors.t, values, name, k, errors.reward_standard_error[name])
        axes[0].set(xlabel=TIME_LABEL, ylabel="RMSE of the reward (reward units)", title="Look-ahead reward")
        shown = [v for values in errors.reward_rmse.values() for v in values]
        if min(shown) > 0 and max(shown) > LOGARITHMIC * min(shown):
            axes[0].set_yscale("log")
            axes[0].set_ylim(top=LOGARITHMIC * max(shown))  # room for the legend
        else:
            axes[0].set_ylim(bottom=0)
        axes[0].legend()
        for k, (name, values) in enumerate(errors.cosine.items()):
            curve(axes[1], errors.t, values, name, k, errors.cosine_standard_error[name])
        if errors.cosine:
            axes[1].set(
                xlabel=TIME_LABEL,
                ylabel="cosine (1 = same direction)",
                title="Reward gradient against the gradient through the exact ODE",
            )
            axes[1].set_ylim(top=1.03)
    return figure


def tilt_curves(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Effective sample size, log Z and thermodynamic length along each run.

    Args:
        histories: by run name, columns ``t``, ``ess`` (fraction), ``log_z``, ``thermodynamic_length`` and,
            if there, ``resampled`` (0 or 1 per step), all of one length.
    """
    shown = {
        "ess": ("effective sample size (fraction)", "ESS"),
        "log_z": ("log Z so far (nats)", "log Z"),
        "thermodynamic_length": ("length so far (nats)", "Thermodynamic length"),
    }
    with canvas(12.0, 3.6) as figure:
        for axis, (key, (unit, title)) in zip(panels(figure, 1, 3), shown.items(), strict=True):
            for k, (name, history) in enumerate(histories.items()):
                if key not in history:
                    continue
                axis.plot(history["t"], history[key], color=colour(name, k), label=label(name))
                if key == "ess" and "resampled" in history:
                    at = [i for i, flag in enumerate(history["resampled"]) if flag]
                    times, values = [history["t"][i] for i in at], [history["ess"][i] for i in at]
                    axis.plot(times, values, "v", color=colour(name, k), markersize=5)
            axis.set(xlabel=TIME_LABEL, ylabel=unit, title=title)
            if key == "ess":
                axis.set_ylim(0, 1.03)
                if any(any(h.get("resampled", ())) for h in histories.values()):
                    axis.set_title("ESS (triangles: resampled)")
            if len(histories) > 1:
                axis.legend()
    return figure


def binomial_standard_error(rate: float, runs: int) -> float:
    """Standard error of a rate over independent runs, from the Agresti-Coull centre so that it is never 0."""
    centre = (rate * runs + 2) / (runs + 4)
    return (centre * (1 - centre) / (runs + 4)) ** 0.5


def hit_rate_curves(
    budgets: Sequence[int],
    hit_rate: Mapping[str, Sequence[float | None]],
    runs: int,
    *,
    title: str = "Hit rate at equal cost",
) -> Figure:
    """Hit rate against the budget per run, with binomial standard errors; None where nothing was run."""
    with canvas(6.8, 4.2) as figure:
        (axis,) = panels(figure, 1, 1)
        for k, (name, rates) in enumerate(hit_rate.items()):
            pairs = [(b, r) for b, r in zip(budgets, rates, strict=True) if r is not None]
            at, values = [b for b, _ in pairs], [r for _, r in pairs]
            curve(axis, at, values, name, k, [binomial_standard_error(r, runs) for r in values])
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(budgets), [str(b) for b in budgets])
        axis.minorticks_off()
        axis.set(
            xlabel="budget per run (network passes; a backward counts 2, a jvp 2)",
            ylabel=f"hit rate over {runs} runs (± 1 standard error)",
            title=title,
        )
        axis.set_ylim(-0.03, 1.05)
        axis.legend()
    return figure


def histogram_bars(
    histograms: Mapping[str, Sequence[float]], edges: Sequence[str], *, xlabel: str, title: str = ""
) -> Figure:
    """Histograms over shared bins, drawn as steps.

    Args:
        histograms: probabilities by name, (bins,) each.
        edges: labels of the bins + 1 edges; shown thinned out.
    """
    bins = len(edges) - 1
    with canvas(8.0, 3.8) as figure:
        (axis,) = panels(figure, 1, 1)
        for k, (name, values) in enumerate(histograms.items()):
            axis.stairs(
                list(values), range(bins + 1), color=colour(name, k), label=label(name), linewidth=1.8
            )
        every = max(1, bins // 12)
        axis.set_xticks(range(0, bins + 1, every), [edges[i] for i in range(0, bins + 1, every)])
        axis.set(xlabel=xlabel, ylabel="probability per bin", title=title)
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure
