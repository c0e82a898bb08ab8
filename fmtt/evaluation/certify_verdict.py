"""Which weight rule a map and its velocity call for, and why, in sentences."""

from __future__ import annotations

from typing import NamedTuple

from fmtt.evaluation.certify_bias import PaperBias
from fmtt.evaluation.certify_mismatch import Mismatch
from fmtt.evaluation.certify_residuals import Residuals

DETECTED = 4.0
"""Standard errors from which a bias or a drift counts as there."""
MATERIAL = 0.05
"""Share of the samples' spread from which a drift between SDE and ODE matters."""
SMALL = 0.01
"""Relative residual up to which a map is called exact."""
FEW = 0.05
"""Effective sample size (fraction) below which weighted means say little."""


class Verdict(NamedTuple):
    """The recommendation.

    Attributes:
        weights: "exact" or "path".
        reason: one sentence.
        paper: "equivalent", "biased" or "unknown": what the paper's weights would do here.
        notes: further sentences, most important first.
    """

    weights: str
    reason: str
    paper: str
    notes: tuple[str, ...]


def verdict(residuals: Residuals, mismatch: Mismatch, bias: PaperBias | None) -> Verdict:
    """Weigh the findings.

    Args:
        bias: None where the reward has no gradient.
    """
    drift, sigma = mismatch.relative(), mismatch.significance()
    apart = [k for k in range(len(drift)) if drift[k] > MATERIAL and sigma[k] > DETECTED]
    residual = max(residuals.mean("eulerian"), residuals.mean("lagrangian"), residuals.mean("semigroup"))
    notes: list[str] = []
    paper = _paper(bias, residual, notes)
    if apart:
        k = max(apart, key=lambda i: drift[i])
        notes.insert(
            0,
            "Weights 'exact' would correct the map's error but not this drift. Under 'path' the base law is "
            "that of the discretised SDE with the steps and the noise of the run; name it with every result.",
        )
        if mismatch.relative(0)[k] > 1.6 * drift[k]:
            notes.append(
                f"The drift was {mismatch.relative(0)[k]:.1%} with {mismatch.steps[0]} steps: it falls with "
                "the steps, so much of it is the SDE's discretisation; certify again with more steps."
            )
        reason = (
            f"the base SDE's marginals drift from the ODE's by {drift[k]:.1%} of the spread at "
            f"t={mismatch.t[k]:g} ({sigma[k]:.0f} deviations above chance, {mismatch.steps[1]} steps): the "
            "velocity and the score computed from it do not belong to one law."
        )
        return Verdict("path", reason, paper, tuple(notes))
    if max(sigma) > DETECTED:
        notes.append(
            f"Base SDE and ODE differ measurably but by at most {max(drift):.1%} of the spread; "
            "'path' would be exact for the discretised SDE at any size of this drift."
        )
    else:
        notes.append(
            "Base SDE and ODE agree as far as these samples tell: a drift of less than "
            f"{mismatch.resolution():.0%} of the spread would have gone unseen. If it matters, certify with "
            "more samples, or use 'path', which is exact for the discretised SDE whatever the drift."
        )
    if bias is None:
        reason = "the reward has no gradient, and 'path' is the rule that needs none."
        return Verdict("path", reason, paper, tuple(notes))
    if paper == "biased":
        worse = max((("E[r]", bias.reward), ("log Z", bias.log_z)), key=lambda pair: pair[1].significance)
        name, found = worse
        reason = (
            f"the paper's weights would be off by {found.difference:+.3g} ± {found.standard_error:.2g} in "
            f"{name} ({found.significance:.0f} standard errors) because the map is not exact; 'exact' "
            "corrects it at the same cost."
        )
    elif paper == "equivalent":
        reason = (
            f"the map is exact to {residual:.1g} of what it does, so exact and paper weights are "
            "equivalent here; 'exact' costs the same and stays right for other rewards."
        )
    else:
        reason = (
            f"the map's error is {residual:.1%} of what it does (the largest of the three mean residuals); "
            "'exact' corrects for it and costs no more than the paper's weights."
        )
    return Verdict("exact", reason, paper, tuple(notes))


def _paper(bias: PaperBias | None, residual: float, notes: list[str]) -> str:
    if bias is None:
        return "unknown"
    if bias.ess < FEW:
        notes.append(
            f"The effective sample size without resampling is {bias.ess:.1%}: the reward is too sharp for "
            "this many particles to judge the paper's bias; use a weaker reward or more particles."
        )
    if bias.significance > DETECTED:
        material = abs(bias.reward.difference) > SMALL * bias.reward_spread or (
            abs(bias.log_z.difference) > SMALL * bias.reward_spread
        )
        if material:
            return "biased"
        notes.append("Exact and paper weights differ measurably, but by under 1 % of the reward's spread.")
        return "equivalent" if residual < SMALL else "unknown"
    if residual < SMALL:
        return "equivalent"
    notes.append(
        f"With {bias.populations} populations of {bias.particles} particles a bias of the paper's weights is "
        f"not established: it is {bias.significance:.2f} standard errors, and {DETECTED:g} are asked for. "
        "That does not show that there is none."
    )
    return "unknown"
