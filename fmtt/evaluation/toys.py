"""Tilt the toy settings by every look-ahead and measure how far the result is from the truth."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation import distances
from fmtt.evaluation.lookahead import Track, silent
from fmtt.evaluation.toys_settings import Toy, exact_samples, truth
from fmtt.steering.tilt import tilt

LOOKAHEADS = ("flow_map", "denoiser", "none")
TRUTH_SAMPLES = 4000


class Column(NamedTuple):
    """A number and its standard error over populations."""

    value: float
    standard_error: float


class Row(NamedTuple):
    """One look-ahead at one number of steps.

    Attributes:
        guided_above, guided_reward: P(first coordinate > 0) and E[r] / scale of the particles, unweighted.
        above, reward: the weighted estimates, means over populations.
        guided_above_error, guided_reward_error: distance of the guided means from the truth.
        above_error, reward_error: root mean square error of a population's weighted estimate.
        mmd: squared maximum mean discrepancy to exact draws.
        sw2: sliced 2-Wasserstein distance to as many exact draws.
        ess: effective sample size at the end (fraction).
        resamples: of a run.
    """

    lookahead: str
    steps: int
    guided_above: Column
    guided_reward: Column
    above: Column
    reward: Column
    guided_above_error: Column
    guided_reward_error: Column
    above_error: Column
    reward_error: Column
    mmd: Column
    sw2: Column
    ess: Column
    resamples: Column


def _column(values: Tensor) -> Column:
    return Column(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _rms(errors: Tensor) -> Column:
    square = _column(errors.square())
    value = math.sqrt(square.value)
    return Column(value, square.standard_error / (2 * value) if value else 0.0)


def _off(column: Column, truth: float) -> Column:
    return Column(abs(column.value - truth), column.standard_error)


def _row(
    toy: Toy,
    name: str,
    steps: int,
    particles: Tensor,
    weighted: tuple[Tensor, Tensor],
    drawn: Tensor,
    ess: Column,
    resamples: Column,
) -> Row:
    """Measure populations of particles (P, N, 2), weighted estimates (P,) and resampled draws (P, N, 2)."""
    known = truth(toy)
    above, reward = weighted
    guided = (
        _column((particles[..., 0] > 0).double().mean(1)),
        _column(toy.reward(particles.reshape(-1, 2)).reshape(particles.shape[:2]).mean(1) / toy.reward.scale),
    )
    measure = torch.Generator().manual_seed(1_000_003)  # the same exact draws for every look-ahead
    reference = exact_samples(toy, TRUTH_SAMPLES, measure)
    lines = distances.directions(2, distances.PROJECTIONS, measure, drawn)
    n = drawn.shape[1]
    own = distances.self_similarity(reference, toy.bandwidth)
    squared = [distances.mmd(x, reference, toy.bandwidth, own=own) for x in drawn]
    sliced = [distances.sliced_wasserstein(x, exact_samples(toy, n, measure), lines) for x in drawn]
    return Row(
        name,
        steps,
        *guided,
        _column(above),
        _column(reward),
        _off(guided[0], known.above),
        _off(guided[1], known.reward),
        _rms(above - known.above),
        _rms(reward - known.reward),
        _column(torch.stack(squared)),
        _column(torch.stack(sliced)),
        ess,
        resamples,
    )


def run(
    toy: Toy,
    lookahead: str,
    steps: int,
    *,
    particles: int = 500,
    populations: int = 16,
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
    above = result.expect(lambda x: (x[:, 0] > 0).double()).value
    reward = result.expect(toy.reward).value / toy.reward.scale
    ess, resamples = _column(result.ess), _column(result.history.resampled.double().sum(0))
    return _row(toy, lookahead, steps, result.samples.reshape(shape), (above, reward), drawn, ess, resamples)


def floor(toy: Toy, *, particles: int = 500, populations: int = 16, seed: int = 2) -> Row:
    """The row that exact, independent draws of the tilted law would show."""
    generator = torch.Generator().manual_seed(seed)
    x = exact_samples(toy, particles * populations, generator).reshape(populations, particles, 2)
    above = (x[..., 0] > 0).double().mean(1)
    reward = toy.reward(x.reshape(-1, 2)).reshape(x.shape[:2]).mean(1) / toy.reward.scale
    return _row(toy, "exact draws", 0, x, (above, reward), x, Column(1.0, 0.0), Column(0.0, 0.0))


def sweep(
    toy: Toy,
    steps: tuple[int, ...],
    *,
    particles: int = 500,
    populations: int = 16,
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
    """The map against another look-ahead in one column; ``won`` when the map's distance is smaller."""

    steps: int
    column: str
    other: str
    flow_map: Column
    value: Column

    @property
    def won(self) -> bool:
        return self.flow_map.value < self.value.value


def contests(toy: Toy, rows: list[Row]) -> list[Contest]:
    """Every comparison of the map with another look-ahead in the columns that measure distance."""
    found = []
    for own in (row for row in rows if row.lookahead == "flow_map"):
        for other in (r for r in rows if r.steps == own.steps and r.lookahead != "flow_map"):
            for name in toy.distances:
                found.append(
                    Contest(own.steps, name, other.lookahead, getattr(own, name), getattr(other, name))
                )
    return found
