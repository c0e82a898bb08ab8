"""Trajectory regression: zero at the exact flow up to its solver, and what it asks of teacher and student."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.tensor import expand_like
from tests.train.closed_form import Bent, draw, exact
from train.losses import OBJECTIVES, Times
from train.losses.trajectory import (
    CROWDING,
    JUMPS,
    LEGS,
    SIZES,
    follow,
    jump_ends,
    shares,
    step_weights,
    time_grid,
)

MODULE = import_module("train.losses.trajectory")


def whole_times(n: int, generator: torch.Generator) -> Times:
    """s = 0, t = 1, u uniform between, as ``times: {whole: 1, midpoint: uniform}`` draws them."""
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    return Times(torch.zeros_like(u), u, torch.ones_like(u))


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
def test_trajectory_is_zero_at_the_exact_flow_up_to_its_solver(interpolant, generator, monkeypatch):
    """Its first step is Euler's: halving all divides its error by 4 or more, and the squared loss by 16."""
    gaussian = exact(interpolant)
    path, times = draw(gaussian, 500, generator)
    path, times = path._replace(x_s=path.x_0), whole_times(500, generator)  # legs of parts are rounded
    monkeypatch.setattr(MODULE, "TO_THE_END", 1.0)  # a jump over the first leg alone shows Euler's own error
    monkeypatch.setattr(MODULE, "ON_THE_DIAGONAL", 0.0)
    loss, errors = OBJECTIVES["trajectory"], []
    wrong = loss(Bent(gaussian), gaussian.velocity, path, times).per_sample
    for legs in (LEGS, 4 * LEGS, 8 * LEGS):
        monkeypatch.setattr(MODULE, "LEGS", legs)
        errors.append(loss(gaussian, gaussian.velocity, path, times).per_sample.mean())
    assert errors[0] < 1e-3
    assert errors[1] / errors[2] > 12
    assert (wrong > 1e-6).all() and wrong.mean() > 50 * errors[0]


def test_points_of_a_whole_trajectory_increase_from_zero_to_one(generator):
    times = whole_times(500, generator)
    t, legs = time_grid(times.s, times.t, shares(times)[0])
    assert t.shape == (500, LEGS + 1) and (legs == LEGS).all()
    assert (t[:, 0] == 0).all() and (t[:, -1] == 1).all()
    assert (t.diff(dim=1) > 0.1 / LEGS).all()
    assert t[:, 1:-1].std(0).min() > 0.06 / LEGS  # they are not the same points every time


def test_a_part_of_a_trajectory_has_its_share_of_the_legs(generator):
    """As long as those of a whole one at most, and not one more than it needs."""
    n = 2000
    s = 0.98 * torch.rand(n, generator=generator, dtype=torch.float64)
    t = s + (1 - s) * torch.rand(n, generator=generator, dtype=torch.float64)
    grid, legs = time_grid(s, t, torch.full_like(s, 0.5))
    rows = torch.arange(n)
    assert torch.equal(grid[:, 0], s) and torch.equal(grid[rows, legs], t)
    assert ((grid.diff(dim=1) > 0).sum(1) == legs).all()
    whole, _ = time_grid(torch.zeros(1), torch.ones(1), torch.full((1,), 0.5))
    assert float(grid.diff(dim=1).max()) < 1.001 * float(whole.diff(dim=1).max())
    need = LEGS * ((1 - s) ** (1 / CROWDING) - (1 - t) ** (1 / CROWDING))
    assert (legs >= need - 1e-3).all() and (legs <= need + 1).all()


def test_processes_call_a_teacher_that_they_share_equally_often(generator, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    gaussian = exact(Linear())
    path, times = draw(gaussian, 8, generator)
    t, legs = time_grid(times.s, times.s + 0.1 * (times.t - times.s), shares(times)[0])
    asked = []

    def teacher(x, t, cond=None):
        asked.append(len(x))
        return gaussian.velocity(x, t, cond)

    follow(teacher, path.x_s, t, legs, None)
    assert int(legs.max()) < LEGS == len(asked)


def test_a_part_ends_where_the_flow_does(generator):
    """From s to t with the legs of a whole trajectory, whatever the batch holds beside it."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 300, generator)
    t, legs = time_grid(times.s, times.t, shares(times)[0])
    asked = []

    def teacher(x, t, cond=None):
        asked.append(len(x))
        return gaussian.velocity(x, t, cond)

    true = follow(teacher, path.x_s, t, legs, None)
    end = true.states[torch.arange(300), legs]
    assert float((end - gaussian(path.x_s, times.s, times.t)).abs().max()) < 0.02
    assert len(asked) == legs.max() < LEGS and len(set(asked)) <= SIZES
    assert sum(asked) < 300 * (legs.double().mean() + LEGS / SIZES)
    alone = follow(gaussian.velocity, path.x_s[:7], t[:7], legs[:7], None)
    for n in range(7):
        torch.testing.assert_close(alone.states[n, : legs[n] + 1], true.states[n, : legs[n] + 1])
        torch.testing.assert_close(alone.velocities[n, : legs[n]], true.velocities[n, : legs[n]])


@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_step_integrates_polynomials_exactly(points, generator):
    """Through as many velocities as there are, whatever the lengths of the steps."""
    t = torch.rand(40, points + 1, generator=generator, dtype=torch.float64).cumsum(1)
    coefficients = torch.randn(points, generator=generator, dtype=torch.float64)
    powers = torch.arange(points)
    weights = step_weights(t)
    assert len(weights) == points
    values = ((t[:, :-1, None] ** powers) * coefficients).sum(2)
    found = sum(w * values[:, -1 - k] for k, w in enumerate(weights))
    integral = ((t[:, 1:, None] ** (powers + 1)) * coefficients / (powers + 1)).sum(2)
    before = (
        integral[:, -2]
        if points > 1
        else (t[:, 0, None] ** (powers + 1) * coefficients / (powers + 1)).sum(1)
    )
    torch.testing.assert_close(found, integral[:, -1] - before)


def test_following_uses_the_last_three_velocities(generator):
    gaussian = exact(Linear())
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([[0.0, 0.1, 0.3, 0.6, 1.0]], dtype=torch.float64).repeat(5, 1)
    true = follow(gaussian.velocity, x, t, torch.full((5,), 4), None)
    assert true.states.shape == (5, 5, 2) and true.velocities.shape == (5, 4, 2)
    for k in range(4):
        torch.testing.assert_close(true.velocities[:, k], gaussian.velocity(true.states[:, k], t[:, k]))
        weights = step_weights(t[:, max(0, k - 2) : k + 2])
        step = sum(w[:, None] * true.velocities[:, k - i] for i, w in enumerate(weights))
        torch.testing.assert_close(true.states[:, k + 1], true.states[:, k] + step)


def test_jumps_cover_the_whole_triangle_evenly(generator):
    """Starts fall on every leg alike; two ends in five are the last by choice and some by chance, a tenth of
    the jumps has no length."""
    n = 4000
    start, end = jump_ends(torch.full((n,), LEGS), *shares(whole_times(n, generator)))
    assert start.shape == end.shape == (JUMPS, n)
    assert (start >= 0).all() and (start < LEGS).all() and (end >= start).all() and (end <= LEGS).all()
    counts = torch.bincount(start.flatten(), minlength=LEGS) / start.numel()
    # Stratified draws spread less than independent ones, whose standard error this is.
    error = (1 / LEGS / (n * JUMPS)) ** 0.5
    assert (counts - 1 / LEGS).abs().max() < 4 * error
    on_diagonal = (end == start).double().mean(0)
    assert abs(on_diagonal.mean() - MODULE.ON_THE_DIAGONAL) < 4 * float(on_diagonal.std()) / n**0.5
    by_chance = sum(1 / (LEGS - k) for k in range(LEGS)) / LEGS
    expected = MODULE.TO_THE_END + (1 - MODULE.TO_THE_END - MODULE.ON_THE_DIAGONAL) * by_chance
    to_the_end = (end == LEGS).double().mean(0)
    assert abs(to_the_end.mean() - expected) < 4 * float(to_the_end.std()) / n**0.5
    inside = (end > start) & (end < LEGS)
    assert inside[:, 0:].any(1).all()
    pairs = torch.unique(torch.stack([start[inside], end[inside]]), dim=1)
    assert pairs.shape[1] == LEGS * (LEGS - 1) // 2  # every pair of inner points occurs


def test_a_jump_of_no_length_is_asked_for_the_teachers_velocity(generator, monkeypatch):
    monkeypatch.setattr(MODULE, "ON_THE_DIAGONAL", 1.0)
    monkeypatch.setattr(MODULE, "TO_THE_END", 0.0)
    gaussian = exact(Linear())
    path, times = draw(gaussian, 50, generator)

    class Student:
        """The exact velocity on the diagonal, nothing elsewhere."""

        interpolant = gaussian.interpolant

        def average_velocity(self, x, s, t, cond=None):
            return torch.where(expand_like(t == s, x), gaussian.velocity(x, s), torch.zeros_like(x))

    out = OBJECTIVES["trajectory"](Student(), gaussian.velocity, path, times)  # type: ignore
    assert out.per_sample.max() < 1e-20


def test_an_error_counts_by_the_square_of_the_time_left(generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 9, generator)

    class OffByOne:
        """On straight trajectories every jump asks for the velocity, which is 0."""

        interpolant = gaussian.interpolant

        def average_velocity(self, x, s, t, cond=None):
            return torch.ones_like(x)

    loss = OBJECTIVES["trajectory"](OffByOne(), lambda x, t, cond: 0 * x, path, times)  # type: ignore
    first, second = shares(times)
    t, legs = time_grid(times.s, times.t, first)
    left = 1 - t.gather(1, jump_ends(legs, first, second)[0].T)
    torch.testing.assert_close(loss.per_sample, left.square().mean(1))


def test_trajectory_does_not_use_the_teacher_at_time_one(generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 20, generator)

    def teacher(x, t, cond=None):
        return torch.where(expand_like(t < 1, x), gaussian.velocity(x, t), 1e9)

    assert OBJECTIVES["trajectory"](gaussian, teacher, path, times).per_sample.mean() < 0.05


def test_trajectory_hands_every_jump_its_sample_condition(generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 7, generator)
    shift = torch.randn(7, 2, generator=generator, dtype=torch.float64)

    def moved(x, t, cond):
        return cond["shift"] + 0 * x

    class Student:
        interpolant = gaussian.interpolant

        def average_velocity(self, x, s, t, cond=None):
            return moved(x, t, cond)

    loss = OBJECTIVES["trajectory"](Student(), moved, path, times, {"shift": shift}).per_sample  # type: ignore
    assert loss.max() < 1e-20


def test_the_times_decide_all_that_is_drawn(generator):
    """Nothing comes from a generator of its own, which resuming would have to restore."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 20, generator)
    first, second = (
        OBJECTIVES["trajectory"](Bent(gaussian), gaussian.velocity, path, times).per_sample for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_numbers_drawn_are_uniform_and_independent(generator):
    """For whole trajectories, where u alone is random, and where u is half-way between s and t."""
    n = 20_000
    whole = whole_times(n, generator)
    a, b = torch.rand(2, n, generator=generator)
    s, t = torch.minimum(a, b), torch.maximum(a, b)
    for times in (Times(*(time.float() for time in whole)), Times(s, (s + t) / 2, t)):
        first, second = shares(times)
        cells = torch.bincount((8 * first).long() * 8 + (8 * second).long(), minlength=64)
        chi_square = float(((cells - n / 64) ** 2 / (n / 64)).sum())
        assert abs(chi_square - 63) < 4 * (2 * 63) ** 0.5


def test_a_trajectory_of_no_length_asks_for_the_teachers_velocity(generator):
    """s = t, as a diagonal share draws them: whatever the jumps, and without a step of the teacher's."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 30, generator)
    here = Times(times.s, times.s, times.s)
    t, legs = time_grid(here.s, here.t, shares(here)[0])
    assert (legs == 1).all() and (t == here.s[:, None]).all()
    asked = []

    def velocity(x, t, cond=None):
        asked.append(len(x))
        return gaussian.velocity(x, t, cond)

    loss = OBJECTIVES["trajectory"](gaussian, velocity, path, here).per_sample
    assert loss.max() < 1e-20 and asked == [30]
    off = OBJECTIVES["trajectory"](Bent(gaussian), gaussian.velocity, path, here).per_sample
    assert off.min() > 1e-8


def test_parts_ask_for_nearly_what_the_flow_does(generator):
    """Their first step is Euler's, so their targets are worse than a whole trajectory's, but bounded."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 4000, generator)
    loss = OBJECTIVES["trajectory"]
    size = loss(Bent(gaussian), gaussian.velocity, path, times).per_sample.mean()
    assert loss(gaussian, gaussian.velocity, path, times).per_sample.mean() < size / 50
