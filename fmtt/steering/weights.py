"""What a particle weighs after one step: increments dA of its log-weight, float64 (B,).

lambda is one float for all particles or one value per particle (B,).
"""

from __future__ import annotations

from torch import Tensor

from fmtt.steering.problem import Evaluation
from fmtt.tensor import dot64

Strength = tuple[float | Tensor, float | Tensor]
"""lambda at the start and at the end of a step."""


def exact_increment(
    before: Evaluation,
    after: Evaluation,
    strength: Strength,
    h: float,
    *,
    deterministic: bool,
    chi: float = 0.0,
) -> Tensor:
    """The integral of lambda' f + rate over one step, by the trapezoidal rule.

    lambda' f is integrated against d lambda, so that the schedule is never differentiated. Along a
    deterministic step, which takes no guidance, the integrand is the derivative of lambda f, and its
    difference is the integral. A rate that is not known at the step's end (at t = 1, if the last step draws
    noise) is taken from its start.
    """
    a, b = strength
    assert before.value is not None and after.value is not None
    if deterministic:
        return b * after.value - a * before.value
    increment = paper_increment(before, after, strength)
    end = before if after.residual is None else after
    for part in (rate(before, a, chi), rate(end, b, chi)):
        if part is not None:
            increment = increment + (0.5 * h) * part
    return increment


def rate(known: Evaluation, strength: float | Tensor, chi: float) -> Tensor | None:
    """lambda c + chi lambda (L f + lambda |grad f|^2), with L f = Laplacian f + s . grad f.

    None where the residual was not asked for, which is where lambda = 0.
    """
    if known.residual is None:
        return None
    total = strength * known.residual
    if chi != 0:
        assert known.langevin is not None and known.gradient is not None
        square = dot64(known.gradient, known.gradient)
        total = total + chi * strength * (known.langevin + strength * square)
    return total


def paper_increment(before: Evaluation, after: Evaluation, strength: Strength) -> Tensor:
    """The integral of lambda' f over one step: the residual of the look-ahead is left out."""
    assert before.value is not None and after.value is not None
    return 0.5 * (strength[1] - strength[0]) * (before.value + after.value)
