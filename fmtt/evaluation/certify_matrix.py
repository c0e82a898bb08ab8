"""The exactness matrix: every look-ahead x weights x resampling against closed forms, a wrong map included.

A cell runs P independent populations, pooled by their estimates of Z (which are unbiased at any number of
particles); its standard error comes from their spread. ``exact`` weights are compared with the tilted law
itself, ``path`` weights with the tilted law of the discretised base process, simulated here without the
library. The paper's weights must agree for the exact map and be caught with the wrong one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation import certify_problems as problems
from fmtt.evaluation.lookahead import Track, silent
from fmtt.steering.lookahead import FlowMapLookahead
from fmtt.steering.resampling import RESAMPLERS
from fmtt.steering.schedule import Scalar
from fmtt.steering.tilt import tilt

LOOKAHEADS = ("none", "denoiser", "euler", "flow_map", "wrong_map")
QUANTITIES = ("E[x]", "P(x>0)", "log Z")
LIMIT = 4.0
"""Standard errors within which a claim of exactness must hold, and beyond which a bias counts as caught."""
RESOLUTION = 0.05
"""Largest standard error of E[x] and P(x>0), as a share of how far the tilt moves them: a cell that sees
nothing does not pass."""
PATH_STEPS = 16
THRESHOLD = 0.9
"""Resample often: what is lost or left behind at a resampling then shows."""
SCHEDULES: dict[str, str | Scalar] = {
    "linear": "linear",
    "squared": lambda t: t * t,
    "adaptive": "adaptive",
}


class Size(NamedTuple):
    """How much a matrix spends.

    Attributes:
        particles, populations: N and P of a cell.
        many: N of cells that need more: those whose bias must be caught, and ``path`` ones, whose weights
            have heavy tails that make a standard error from few particles too small.
        steps: of cells with ``exact`` weights, which are right as steps shrink; see :func:`num_steps`.
        reference: draws of the discretised base process.
        crossed: whether every dimension meets every reward, or each its own.
    """

    particles: int
    populations: int
    many: int
    steps: int
    reference: int
    crossed: bool


QUICK = Size(400, 32, 2000, 128, 200_000, False)
FULL = Size(1000, 32, 4000, 256, 400_000, True)


class Cell(NamedTuple):
    """One combination. ``lookahead`` may be "wrong_map", a map with an error of up to 0.35 per coordinate."""

    dimension: int
    reward: str
    lookahead: str
    weights: str
    resample: str
    schedule: str = "linear"

    @property
    def claims_exact(self) -> bool:
        """Whether the weights are right for this look-ahead; the paper's are for an exact map only."""
        return self.weights != "paper" or self.lookahead == "flow_map"


class CellResult(NamedTuple):
    """What a cell found: estimates, truths and standard errors, 3 each in the order of QUANTITIES.

    Attributes:
        standard_error: of the estimate, over populations.
        truth_error: of the truth where it is itself simulated, else 0.
        deviation: |estimate - truth| in joint standard errors.
    """

    cell: Cell
    estimate: tuple[float, ...]
    standard_error: tuple[float, ...]
    truth: tuple[float, ...]
    truth_error: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def resolved(self) -> bool:
        """Whether every number is finite and the standard errors are within RESOLUTION."""
        known = problems.truth(self.cell.reward, self.cell.dimension)
        moved = (known.tilted - known.untilted).abs().tolist()[:2]
        small = all(s < RESOLUTION * m for s, m in zip(self.standard_error, moved, strict=False))
        return small and all(map(math.isfinite, (*self.estimate, *self.standard_error, *self.deviation)))

    @property
    def passed(self) -> bool:
        """Within LIMIT where exactness is claimed; beyond it where the bias is known and must be caught."""
        within = max(self.deviation) < LIMIT
        return self.resolved and within == self.cell.claims_exact


def cells(size: Size) -> list[Cell]:
    """Every look-ahead x weights x resampling, and a few cells for the schedules and other resamplers."""
    pairs = list(zip(problems.DIMENSIONS, problems.REWARDS, strict=True))
    if size.crossed:
        pairs = list(product(problems.DIMENSIONS, problems.REWARDS))
    found = []
    for d, name in pairs:
        for lookahead, weights, resample in product(LOOKAHEADS, ("exact", "path"), ("systematic", "none")):
            found.append(Cell(d, name, lookahead, weights, resample))
        found += [Cell(d, name, lookahead, "paper", "systematic") for lookahead in LOOKAHEADS[-2:]]
        for schedule, weights in product([s for s in SCHEDULES if s != "linear"], ("exact", "path")):
            found.append(Cell(d, name, "wrong_map", weights, "systematic", schedule))
    others = [name for name in RESAMPLERS if name not in ("systematic", "none")]
    found += [Cell(1, "linear", "wrong_map", "exact", name) for name in others]
    return found


def base_law(reward: str, d: int, *, steps: int = PATH_STEPS, draws: int = 200_000) -> tuple[Tensor, Tensor]:
    """The quantities (3,) under the discretised base SDE reweighted by e^r, and their standard errors."""
    flow, generator = problems.ProductMixture(d), torch.Generator().manual_seed(99)
    x, h = torch.randn(draws, d, generator=generator, dtype=torch.float64), 1 / steps
    for k in range(steps):
        t = k * h
        eps, score = 1 - t - h, (t * flow.velocity(x, t) - x) / (1 - t)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x + h * (flow.velocity(x, t) + eps * score) + math.sqrt(2 * max(eps, 0.0) * h) * noise
    w, values = problems.reward(reward, d)(x).exp(), problems.statistics(x)
    mean, total = w.mean(), w.sum()
    ratio = (w[:, None] * values).sum(0) / total
    ratio_error = (w[:, None] * (values - ratio)).square().sum(0).sqrt() / total
    log_z_error = w.std() / math.sqrt(draws) / mean
    return torch.cat([ratio, mean.log()[None]]), torch.cat([ratio_error, log_z_error[None]])


def pooled(values: Tensor, log_z: Tensor) -> tuple[Tensor, Tensor]:
    """Self-normalised means (P, M) and log Z (P,) of independent populations as one estimate.

    Returns:
        The M means and log Z, and their standard errors (by the delta method), (M + 1,) each.
    """
    z = (log_z - log_z.max()).exp()  # (P,)
    count, total = len(z), z.sum()
    mean = (z[:, None] * values).sum(0) / total
    bessel = math.sqrt(count / (count - 1))
    error = (z[:, None] * (values - mean)).square().sum(0).sqrt() / total * bessel
    log_mean = (total / count).log() + log_z.max()
    log_error = z.std() / (total / count) / math.sqrt(count)
    return torch.cat([mean, log_mean[None]]), torch.cat([error, log_error[None]])


def num_steps(cell: Cell, size: Size) -> int:
    """Steps of a cell: few for ``path``, which is right at any number. The paper's weights are right as steps
    shrink, like ``exact`` ones, but their cells have more particles, which resolve half the step error."""
    return {"path": PATH_STEPS, "exact": size.steps, "paper": 2 * size.steps}[cell.weights]


def run_cell(cell: Cell, size: Size, truth: tuple[Tensor, Tensor], *, seed: int = 0) -> CellResult:
    """Tilt, estimate and compare.

    Args:
        truth: values and standard errors, (3,) each.
    """
    d, own = cell.dimension, cell.lookahead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights="paper" warns, as it should
        result = tilt(
            problems.ProductMixture(d),
            problems.reward(cell.reward, d),
            num_particles=size.particles if cell.weights == "exact" else size.many,
            num_populations=size.populations,
            num_steps=num_steps(cell, size),
            lookahead=FlowMapLookahead(problems.WrongMap(d)) if own == "wrong_map" else own,
            lookahead_steps=2 if own == "euler" else 1,
            weights=cell.weights,
            schedule=SCHEDULES[cell.schedule],
            resample=cell.resample,
            ess_threshold=THRESHOLD,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(seed),
        )
    estimate, error = pooled(result.expect(problems.statistics).value, result.log_z)
    deviation = (estimate - truth[0]).abs() / (error.square() + truth[1].square()).sqrt()
    return CellResult(cell, *(tuple(v.tolist()) for v in (estimate, error, *truth, deviation)))


def run(
    size: Size = QUICK, *, only: Sequence[Cell] | None = None, seed: int = 0, track: Track = silent
) -> list[CellResult]:
    """Run the matrix.

    Args:
        only: these cells instead of all of ``cells(size)``.
        seed: cell k takes seed + k.
    """
    wanted = cells(size) if only is None else list(only)

    @cache
    def truth(reward: str, d: int, discretised: bool) -> tuple[Tensor, Tensor]:
        if discretised:
            return base_law(reward, d, draws=size.reference)
        exact = problems.truth(reward, d).tilted
        return exact, torch.zeros_like(exact)

    found = []
    for k in track(range(len(wanted)), "exactness matrix"):
        cell = wanted[k]
        found.append(
            run_cell(cell, size, truth(cell.reward, cell.dimension, cell.weights == "path"), seed=seed + k)
        )
    return found


COLUMNS = ("d", "reward", "look-ahead", "weights", "resample", "schedule", *QUANTITIES, "worst", "verdict")


def rows(results: Sequence[CellResult]) -> list[list[str]]:
    """The table's cells as text, in the order of COLUMNS."""
    table = []
    for r in results:
        numbers = [
            f"{e:.4f} ± {s:.4f} ({t:.4f})"
            for e, s, t in zip(r.estimate, r.standard_error, r.truth, strict=True)
        ]
        good, bad = ("exact", "FAILED") if r.cell.claims_exact else ("bias caught", "BIAS MISSED")
        worst = f"{max(r.deviation):.1f} SE"
        table.append([*map(str, r.cell), *numbers, worst, good if r.passed else bad])
    return table


def summary(results: Sequence[CellResult]) -> str:
    """One line: how many cells hold, and the largest deviation where exactness is claimed."""
    claimed = [r for r in results if r.cell.claims_exact]
    caught = [r for r in results if not r.cell.claims_exact]
    largest = max((max(r.deviation) for r in claimed), default=0.0)
    return (
        f"{sum(r.passed for r in claimed)} of {len(claimed)} cells that claim exactness are within {LIMIT:g} "
        f"standard errors (largest of {3 * len(claimed)}: {largest:.1f}); "
        f"{sum(r.passed for r in caught)} of {len(caught)} known biases are caught."
    )


def text(results: Sequence[CellResult]) -> str:
    """The matrix as a plain table: estimate ± standard error (truth)."""
    table = [list(COLUMNS), *rows(results)]
    widths = [max(len(row[k]) for row in table) for k in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:], "", summary(results)])
