"""The certificate as one page: the verdict first, then what it rests on; and its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fmtt.evaluation import certify_matrix, figures
from fmtt.evaluation.certify import Certificate
from fmtt.evaluation.certify_bias import PaperBias
from fmtt.evaluation.certify_mismatch import Mismatch
from fmtt.evaluation.certify_residuals import IDENTITIES, Residuals
from fmtt.evaluation.certify_verdict import DETECTED, FEW, MATERIAL, SMALL
from fmtt.evaluation.report import Report
from fmtt.evaluation.style import canvas, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Save = Callable[[str, "Figure"], bytes]
"""``save(name, figure)``: write a figure and return it as PNG."""

SDE, ODE, PAPER = "#c8553d", "#8c8c8c", "#1c4f82"
TITLES = {"eulerian": "Eulerian", "lagrangian": "Lagrangian", "semigroup": "Semigroup"}
PAPER_HERE = {"equivalent": "as good as exact", "biased": "biased", "unknown": "bias not established"}
RESIDUALS_SAY = f"""
    Residual: the error of an identity as a share of what the map does, over all pairs of times; a mean of
    up to {SMALL:g} counts as exact."""
DRIFT_SAYS = f"""
    Drift: the distance between samples of the base SDE and of the ODE, above what chance alone gives, at
    the worst of the times; it counts where it is more than {MATERIAL:.0%} of the samples' spread and more
    than {DETECTED:g} deviations above chance."""
PAPER_SAYS = f"""
    Paper - exact: what the paper's weights change, on the same particles, in the tilted mean of the
    reward and in log Z, ± standard error over populations; it counts from {DETECTED:g} standard errors
    on. The log-weight difference is between the two rules, particle by particle. ESS is the effective
    sample size of those runs, as a share of their particles: under {FEW:.0%} they say little."""


def residual_maps(found: Residuals) -> Figure:
    """The three residuals over (s, t), each a table of colours with its numbers."""
    with canvas(11.5, 3.9) as figure:
        axes = panels(figure, 1, 3)
        highest = max(found.worst(name) for name in IDENTITIES) or 1.0
        for axis, name in zip(axes, IDENTITIES, strict=True):
            rows = getattr(found, name)
            shown = [[float("nan") if v is None else v for v in row] for row in rows]
            axis.imshow(shown, cmap="Blues", vmin=0, vmax=1.6 * highest, origin="lower", aspect="auto")
            for i, row in enumerate(rows):
                for j, value in enumerate(row):
                    if value is not None:
                        axis.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8)
            axis.set_xticks(range(len(found.t)), [f"{t:g}" for t in found.t])
            axis.set_yticks(range(len(found.s)), [f"{s:g}" for s in found.s])
            axis.grid(False)
            axis.set(xlabel="to t", ylabel="from s", title=TITLES[name])
    return figure


def mismatch_curves(found: Mismatch) -> Figure:
    """Distance between SDE and ODE samples over t, with the band that chance alone gives."""
    with canvas(6.6, 4.0) as figure:
        (axis,) = panels(figure, 1, 1)
        fine = found.drift[-1]
        low = [d.floor - 2 * d.floor_deviation for d in fine]
        high = [d.floor + 2 * d.floor_deviation for d in fine]
        axis.fill_between(found.t, low, high, color=ODE, alpha=0.25, label="chance (± 2 deviations)", lw=0)
        for run, style in ((0, ":"), (1, "-")):
            label = f"base SDE, {found.steps[run]} steps, against ODE"
            distances = [d.distance for d in found.drift[run]]
            axis.plot(found.t, distances, style, marker="o", color=SDE, label=label)
        axis.set(
            xlabel=figures.TIME_LABEL,
            ylabel="sliced Wasserstein distance (data units)",
            title="Do SDE and ODE share their marginals?",
        )
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure


def bias_points(found: PaperBias) -> Figure:
    """The difference paper - exact of every population, their mean and its standard error."""
    with canvas(6.6, 2.6) as figure:
        (axis,) = panels(figure, 1, 1)
        for row, paired in enumerate((found.log_z, found.reward)):
            axis.plot(paired.values, [row] * len(paired.values), "o", color=PAPER, alpha=0.3, markersize=5)
            axis.errorbar(
                [paired.difference], [row], xerr=[paired.standard_error], fmt="D", color=SDE, capsize=4
            )
        axis.axvline(0, color="#555555", lw=1)
        axis.set_yticks([0, 1], ["log Z (nats)", "E[r] (reward units)"])
        axis.set_ylim(-0.6, 1.6)
        axis.set(xlabel="paper's weights minus exact weights", title="Bias of the paper's weights")
    return figure


def matrix_section(report: Report, cells: tuple[certify_matrix.CellResult, ...]) -> None:
    """The exactness matrix as a table."""
    report.section(
        "The library on closed-form laws",
        certify_matrix.summary(cells)
        + "\n\nNothing here depends on your map. Each number is an estimate ± its standard error over "
        "independent populations, beside the truth in brackets; path weights are compared with the law of "
        "the discretised base process, whose truth is therefore another one.",
    )
    report.table(certify_matrix.COLUMNS, certify_matrix.rows(cells), "The exactness matrix")


def page(certificate: Certificate, title: str, save: Save) -> Report:
    """The report, not yet written; its figures are handed to ``save``."""
    c, said = certificate, certificate.verdict
    lead = f"Use weights={said.weights!r}: {said.reason}"
    if not c.matrix_holds:
        lead = "The exactness matrix does NOT hold on this machine: see its table.\n\n" + lead
    report = Report(title, lead)
    report.section("Verdict", f"Reward: {c.reward}. " + " ".join(said.notes))
    rows: list[list[object]] = [
        ["recommended weights", said.weights],
        ["the paper's weights here", PAPER_HERE[said.paper]],
        *([f"{TITLES[n]} residual, mean / worst", _pair(c.residuals, n)] for n in IDENTITIES),
        ["largest drift of SDE from ODE, share of the spread", f"{max(c.mismatch.relative()):.2%}"],
        ["most significant drift, deviations above chance", f"{max(c.mismatch.significance()):.1f}"],
    ]
    if c.paper_bias is not None:
        for name, paired in (("E[r]", c.paper_bias.reward), ("log Z", c.paper_bias.log_z)):
            rows.append([f"paper - exact, {name}", f"{paired.difference:+.3g} ± {paired.standard_error:.2g}"])
        rows.append(["log-weight difference per particle (nats, rms)", f"{c.paper_bias.gap:.3g}"])
        rows.append(["ESS of these runs, without resampling", f"{c.paper_bias.ess:.1%}"])
    report.table(["", "value"], rows)
    for sentence in (RESIDUALS_SAY, DRIFT_SAYS, *([] if c.paper_bias is None else [PAPER_SAYS])):
        report.text(sentence)

    report.section(
        "Is the map a flow map?",
        "Residuals of the three identities on the ODE's own trajectories, relative to what the map does "
        f"between s and t; computed in {c.residuals.dtype}.",
    )
    report.figure(
        save("residuals.png", residual_maps(c.residuals)), "Relative residuals from s (rows) to t (columns)"
    )
    report.section(
        "Does a look-ahead's gradient ascend the reward?",
        "Cosine with the gradient through the exact ODE, and the error of the look-ahead reward.",
    )
    report.figure(
        save("ascent.png", figures.reward_curves(c.ascent)),
        "Look-aheads under the reward; bars: ± standard error over samples",
    )
    report.section(
        "Does the velocity fit its score?",
        "Samples of the base SDE against samples of the ODE. The band is what relabelling the two at random "
        "gives: finite samples of one law are never at distance 0, and what counts is the distance above the "
        "band. A drift that stays as the steps double is a mismatch of the velocity and the score.",
    )
    report.figure(save("mismatch.png", mismatch_curves(c.mismatch)), "Marginals of SDE and ODE over time")
    if c.paper_bias is not None:
        found = c.paper_bias
        report.section(
            "What would the paper's weights get wrong?",
            f"{found.populations} populations of {found.particles} particles over {found.steps} steps, never "
            "resampled and weighed by both rules. Points: populations; diamond: mean ± standard error.",
        )
        report.figure(save("paper_bias.png", bias_points(found)), "Paper's weights minus exact weights")
    if c.matrix:
        matrix_section(report, c.matrix)
    return report


def _pair(found: Residuals, name: str) -> str:
    return f"{found.mean(name):.3g} / {found.worst(name):.3g}"
