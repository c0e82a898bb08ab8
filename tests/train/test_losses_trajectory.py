"""Trajectory regression: zero at the exact flow up to its solver, and what it asks of teacher and student."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.tensor import expand_like
from tests.train.closed_form import Bent, draw, exact
from train.losses import OBJECTIVES, Times
from train.losses.trajectory import CHAIN_WEIGHT, LEGS, chain, heun


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
def test_trajectory_is_zero_at_the_exact_flow_up_to_its_solver(interpolant, generator, monkeypatch):
    """Heun's error falls by 4 when its steps are halved, so the squared loss falls by 16."""
    gaussian = exact(interpolant)
    path, times = draw(gaussian, 500, generator)
    errors = []
    for refinement in (1, 4, 8):
        legs = tuple((refinement * steps, power) for steps, power in LEGS)
        monkeypatch.setattr(import_module("train.losses.trajectory"), "LEGS", legs)
        errors.append(OBJECTIVES["trajectory"](gaussian, gaussian.velocity, path, times).per_sample.mean())
    assert errors[0] < 1e-3
    assert 12 < errors[1] / errors[2] < 20
    wrong = OBJECTIVES["trajectory"](Bent(gaussian), gaussian.velocity, path, times).per_sample
    assert (wrong > 1e-6).all() and wrong.mean() > 50 * errors[0]


def test_trajectory_on_the_diagonal_is_the_teachers_velocity(generator):
    """Where s = u = t the three short jumps ask for b_s itself, with no solver's error."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 50, generator)
    states, asked = [], []

    class Recorded:
        """The exact map, which keeps what it was asked for."""

        interpolant = gaussian.interpolant

        def average_velocity(self, x, s, t, cond=None):
            states.append(x)
            asked.append((s, t))
            return torch.where(expand_like(t == s, x), gaussian.velocity(x, s), torch.zeros_like(x))

    times = Times(times.s, times.s, times.s)
    loss = OBJECTIVES["trajectory"](Recorded(), gaussian.velocity, path, times).per_sample  # type: ignore
    (s, t), x = asked[0], states[0]
    assert (s.reshape(6, -1)[[0, 1, 3]] == t.reshape(6, -1)[[0, 1, 3]]).all()
    steps, power = LEGS[2]
    one = torch.ones_like(times.s)
    end, _ = heun(gaussian.velocity, path.x_s, times.s, one, None, steps=steps, power=power)
    torch.testing.assert_close(loss, (3 / 6 + CHAIN_WEIGHT) * (end - path.x_s).square().mean(1))
    assert torch.equal(x[:50], path.x_s)


def test_trajectory_does_not_use_the_teacher_at_time_one(generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 20, generator)
    times = Times(times.s, times.u, torch.where(torch.arange(20) < 10, 1.0, times.t))

    def teacher(x, t, cond=None):
        return torch.where(expand_like(t < 1, x), gaussian.velocity(x, t), 1e9)

    class Student:
        """The exact map, which knows its velocity where a jump has no length."""

        interpolant = gaussian.interpolant

        def average_velocity(self, x, s, t, cond=None):
            gap = expand_like(t - s, x)
            jump = (gaussian(x, s, t) - x) / gap.clamp_min(1e-9)
            return torch.where(gap > 0, jump, gaussian.velocity(x, s))

    loss = OBJECTIVES["trajectory"](Student(), teacher, path, times).per_sample  # type: ignore
    assert loss.mean() < 0.05


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
