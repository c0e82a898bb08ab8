"""Tilt the toy settings by every look-ahead and measure how far the result is from the truth."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation import distances
from fmtt.evaluation.lookahead import Track, silent
from fmtt.evaluation.toys_settings import Toy, exact_samples, truth
from fmtt.steering.tilt import tilt

LOOKAHEADS = ("flow_map", "denoiser", "none")
DISTANCES = ("above_error", "reward_error", "mmd", "sw2")
TRUTH_SAMPLES = 4000
"""Exact draws that the last two distances compare with, at least."""
DECIDED = 3.0
"""Standard errors from which a difference counts as there."""


class Column(NamedTuple):
    """A number and its standard error over populations.

    Attributes:
        parts: what it is the mean of, one per population; of a root mean square the squares.
    """

    value: float
    standard_error: float
    parts: tuple[float, ...] = ()


class Measured(NamedTuple):
    """Populations beside the truth.

    Attributes:
        above, reward: P(first coordinate > 0) and E[r] / scale, means over populations.
        above_error, reward_error: root mean square error of one population's estimate of them.
        mmd: squared maximum mean discrepancy to exact draws.
        sw2: sliced 2-Wasserstein distance to exact draws.
    """

    above: Column
    reward: Column
    above_error: Column
    reward_error: Column
    mmd: Column
    sw2: Column


class Row(NamedTuple):
    """One look-ahead at one number of steps.

    Attributes:
        standing: the particles where guidance and resampling left them, whatever weights they hold.
        weighted: the weighted estimates, and particles drawn by weight.
        ess: effective sample size at the end (fraction).
        resamples: of a run.
    """

    lookahead: str
    steps: int
    standing: Measured
    weighted: Measured
    ess: Column
    resamples: Column


def _mean(values: Tensor) -> Column:
    error = float(values.std()) / math.sqrt(len(values))
    return Column(float(values.mean()), error, tuple(values.tolist()))


def _rms(errors: Tensor) -> Column:
    square = _mean(errors.square())
    value = math.sqrt(square.value)
    return Column(value, square.standard_error / (2 * value) if value else 0.0, square.parts)


class _Reference(NamedTuple):
    """What populations of n are compared with.

    Attributes:
        x: exact draws (M, 2), M a multiple of n.
        own: their own similarity.
        lines: directions (2, L).
        target: the draws projected on them and sorted, (n, M / n, L).
    """

    x: Tensor
    own: Tensor
    lines: Tensor
    target: Tensor


@cache
def _reference(toy: Toy, n: int) -> _Reference:
    generator = torch.Generator().manual_seed(1_000_003)
    copies = -(-TRUTH_SAMPLES // n)
    x = exact_samples(toy, n * copies, generator)
    lines = distances.directions(2, distances.PROJECTIONS, generator, x)
    target = (x @ lines).sort(0).values.reshape(n, copies, -1)
    return _Reference(x, distances.self_similarity(x, toy.bandwidth), lines, target)


def _measure(toy: Toy, populations: Tensor, above: Tensor, reward: Tensor) -> Measured:
    """Populations (P, N, 2) and their estimates (P,) beside the truth and the same exact draws for all."""
    known, exact = truth(toy), _reference(toy, populations.shape[1])
    squared = [distances.mmd(x, exact.x, toy.bandwidth, own=exact.own) for x in populations]
    sliced = [((x @ exact.lines).sort(0).values[:, None] - exact.target).square().mean() for x in populations]
    return Measured(
        _mean(above),
        _mean(reward),
        _rms(above - known.above),
        _rms(reward - known.reward),
        _mean(torch.stack(squared)),
        _mean((2 * torch.stack(sliced)).sqrt()),
    )


def _plain(toy: Toy, populations: Tensor) -> Measured:
    """Equally weighted particles (P, N, 2)."""
    reward = toy.reward(populations.reshape(-1, 2)).reshape(populations.shape[:2]).mean(1)
    return _measure(toy, populations, _above(populations).mean(1), reward / toy.reward.scale)


def _above(x: Tensor) -> Tensor:
    return (x[..., 0] > 0).double()


def run(
    toy: Toy,
    lookahead: str,
    steps: int,
    *,
    particles: int = 500,
    populations: int = 64,
    seed: int = 0,
    chunk_size: int = 2048,
) -> Row:
    """Tilt by exact weights and measure how far the result is from the truth."""
    result = tilt(
        toy.law,
        toy.reward,
        num_particles=particles,
        num_populations=populations,
        num_steps=steps,
        lookahead=lookahead,
        noise=toy.noise,
        resample="systematic" if toy.threshold else "none",
        ess_threshold=toy.threshold,
        dtype=torch.float64,
        chunk_size=chunk_size,
        generator=torch.Generator().manual_seed(seed),
    )
    shape = populations, particles, 2
    drawn = result.resample(particles, torch.Generator().manual_seed(seed + 1)).reshape(shape)
    above, reward = result.expect(_above).value, result.expect(toy.reward).value / toy.reward.scale
    return Row(
        lookahead,
        steps,
        _plain(toy, result.samples.reshape(shape)),
        _measure(toy, drawn, above, reward),
        _mean(result.ess),
        _mean(result.history.resampled.double().sum(0)),
    )


def floor(toy: Toy, *, particles: int = 500, populations: int = 64, seed: int = 2) -> Row:
    """The row that exact, independent draws of the tilted law show: what their number leaves of distances."""
    generator = torch.Generator().manual_seed(seed)
    x = exact_samples(toy, particles * populations, generator).reshape(populations, particles, 2)
    found = _plain(toy, x)
    return Row("exact draws", 0, found, found, Column(1.0, 0.0), Column(0.0, 0.0))


def sweep(
    toy: Toy,
    steps: tuple[int, ...],
    *,
    particles: int = 500,
    populations: int = 64,
    seed: int = 0,
    track: Track = silent,
) -> list[Row]:
    """Every look-ahead at every number of steps; at one number all start from the same noise."""
    jobs = [(k, name) for k in steps for name in LOOKAHEADS]
    return [
        run(toy, jobs[j][1], jobs[j][0], particles=particles, populations=populations, seed=seed)
        for j in track(range(len(jobs)), f"toy {toy.name}")
    ]


class Contest(NamedTuple):
    """The map against another look-ahead in one column that measures distance.

    Attributes:
        view: "standing" or "weighted".
        significance: how many standard errors the map is nearer, from the paired differences of populations;
            negative where it is farther.
        off, room: how many standard errors the map and the other look-ahead are farther off than exact draws.
    """

    steps: int
    view: str
    column: str
    other: str
    flow_map: Column
    value: Column
    significance: float
    off: float
    room: float

    @property
    def outcome(self) -> str:
        """Where the difference is decided "won" or "lost", else "level".

        Level too where both are as near to the truth as exact draws are: nothing can be asked to be nearer.
        """
        at_the_floor = max(self.off, self.room) < DECIDED
        if at_the_floor or abs(self.significance) < DECIDED:
            return "level"
        return "won" if self.significance > 0 else "lost"


def contests(toy: Toy, rows: list[Row], exact: Row) -> list[Contest]:
    """Every comparison of the map with another look-ahead, beside the row ``exact`` of exact draws."""
    found = []
    for own in (row for row in rows if row.lookahead == "flow_map"):
        for other in (r for r in rows if r.steps == own.steps and r.lookahead != "flow_map"):
            for view in toy.views:
                for name in DISTANCES:
                    a, b, c = (getattr(getattr(row, view), name) for row in (own, other, exact))
                    scores = _paired(a, b), _apart(c, a), _apart(c, b)
                    found.append(Contest(own.steps, view, name, other.lookahead, a, b, *scores))
    return found


def _paired(a: Column, b: Column) -> float:
    """How many standard errors a is below b; their populations belong together."""
    difference = torch.tensor(b.parts, dtype=torch.float64) - torch.tensor(a.parts, dtype=torch.float64)
    found = _mean(difference)
    return found.value / max(found.standard_error, 1e-300)


def _apart(a: Column, b: Column) -> float:
    """How many standard errors a is below b; their populations are independent."""
    x, y = (
        _mean(torch.tensor(a.parts, dtype=torch.float64)),
        _mean(torch.tensor(b.parts, dtype=torch.float64)),
    )
    return (y.value - x.value) / max(math.hypot(x.standard_error, y.standard_error), 1e-300)
