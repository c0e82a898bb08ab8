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
    CHAIN,
    CHAIN_WEIGHT,
    JUMPS,
    LEGS,
    chain,
    chain_stops,
    follow,
    jump_ends,
    shares,
    time_grid,
)

MODULE = import_module("train.losses.trajectory")


def noise_times(n: int, generator: torch.Generator) -> Times:
    """s = 0, u < t uniform, as ``times.distribution: noise`` draws them."""
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    return Times(torch.zeros_like(t), t * torch.rand(n, generator=generator, dtype=torch.float64), t)


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
def test_trajectory_is_zero_at_the_exact_flow_up_to_its_solver(interpolant, generator, monkeypatch):
    """Heun's error falls by 4 when its steps are halved, so the squared loss falls by 16; a last Euler step
    of half the length errs by a quarter too."""
    gaussian = exact(interpolant)
    path, times = draw(gaussian, 500, generator)
    loss, errors = OBJECTIVES["trajectory"], []
    wrong = loss(Bent(gaussian), gaussian.velocity, path, times).per_sample
    for legs in (LEGS, 4 * LEGS, 8 * LEGS):
        monkeypatch.setattr(MODULE, "LEGS", legs)
        errors.append(loss(gaussian, gaussian.velocity, path, times).per_sample.mean())
    assert errors[0] < 1e-3
    assert 12 < errors[1] / errors[2] < 20
    assert (wrong > 1e-6).all() and wrong.mean() > 50 * errors[0]


def test_points_of_a_trajectory_increase_from_s_to_one(generator):
    times = noise_times(500, generator)
    first, _ = shares(times)
    t = time_grid(times.s + 0.3, first)
    assert t.shape == (500, LEGS + 1)
    assert torch.equal(t[:, 0], times.s + 0.3) and (t[:, -1] == 1).all()
    assert (t.diff(dim=1) > 0.1 * 0.7 / LEGS).all()
    assert t[:, 1:-1].std(0).min() > 0.005  # they are not the same points every time


def test_following_is_heuns_method_with_a_last_euler_step(generator):
    gaussian = exact(Linear())
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([[0.0, 0.4, 1.0]], dtype=torch.float64).repeat(5, 1)
    true = follow(gaussian.velocity, x, t, None)
    first = gaussian.velocity(x, t[:, 0])
    middle = x + 0.2 * (first + gaussian.velocity(x + 0.4 * first, t[:, 1]))
    second = gaussian.velocity(middle, t[:, 1])
    torch.testing.assert_close(true.states, torch.stack([x, middle, middle + 0.6 * second], 1))
    torch.testing.assert_close(true.velocities, torch.stack([first, second], 1))


def test_jumps_cover_the_whole_triangle_evenly(generator):
    """Starts fall on every leg alike; half of the ends are t = 1 by choice and some by chance, a tenth of the
    jumps has no length."""
    n = 4000
    start, end = jump_ends(*shares(noise_times(n, generator)))
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


def test_chains_lead_from_everywhere_to_the_end_in_even_jumps(generator):
    stops = chain_stops(*shares(noise_times(4000, generator)))
    assert stops.shape == (CHAIN + 1, 4000)
    assert (stops.diff(dim=0) > 0).all() and (stops[-1] == LEGS).all()
    assert (stops.diff(dim=0).max(0).values - stops.diff(dim=0).min(0).values <= 1).all()
    assert torch.unique(stops[0]).tolist() == list(range(LEGS - CHAIN))
    from_start = (stops[0] == 0).double().mean()
    assert from_start > MODULE.CHAIN_FROM_START


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
    assert out.logs["loss_jumps"] < 1e-20
    torch.testing.assert_close(out.per_sample.mean(), CHAIN_WEIGHT * out.logs["loss_chains"])


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


def test_a_chain_is_differentiated_through_all_its_jumps(generator):
    """An early jump's error reaches the chain's end by the derivative of the jumps after it."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 30, generator)
    early = torch.zeros((), dtype=torch.float64, requires_grad=True)

    class Student:
        """The exact map, whose jumps that start at s are off by ``early``."""

        interpolant = gaussian.interpolant

        def average_velocity(self, x, s, t, cond=None):
            jump = (gaussian(x, s, t) - x) / expand_like(t - s, x)
            return jump + early if torch.equal(s, times.s) else jump

    end = chain(Student(), path.x_s, [*times, torch.ones_like(times.s)], None)  # type: ignore
    torch.testing.assert_close(end, gaussian(path.x_s, times.s, torch.ones_like(times.s)))
    (slope,) = torch.autograd.grad(end.sum(), early)
    gap = expand_like(times.u - times.s, path.x_s)
    step = 1e-6
    moved = gaussian(path.x_s, times.s, times.u) + step * gap
    unmoved = gaussian(path.x_s, times.s, times.u)
    one = torch.ones_like(times.s)
    expected = (gaussian(moved, times.u, one) - gaussian(unmoved, times.u, one)).sum() / step
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0)
