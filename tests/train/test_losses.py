"""Objectives vanish at the exact flow, see any other, and have the gradients of their definitions."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.flow.oracle import Gaussian
from fmtt.models.dit import DiT
from fmtt.models.mlp import MLP
from fmtt.tensor import expand_like
from train.losses import OBJECTIVES, Times
from train.losses.base import sample_path
from train.losses.trajectory import LEGS, heun

TEACHER_VELOCITY = ("diagonal", "lsd", "lmd", "psd")


def exact(interpolant) -> Gaussian:
    return Gaussian([0.5, -1.0], [[0.8, 0.3], [0.3, 0.4]], interpolant)


def draw(gaussian: Gaussian, n: int, generator: torch.Generator):
    """A path sample with data from ``gaussian``, and times s < u < t."""
    a = torch.rand(3, n, generator=generator, dtype=torch.float64)
    s = 0.9 * a[0]
    t = s + (0.02 + 0.98 * a[1]) * (1 - s)
    times = Times(s, s + a[2] * (t - s), t)
    x_0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return sample_path(gaussian.interpolant, x_0, gaussian.sample(n, generator), s), times


class Wrong:
    """An exact map, bent."""

    def __init__(self, gaussian: Gaussian) -> None:
        self.gaussian, self.interpolant = gaussian, gaussian.interpolant

    def __call__(self, x, s, t, cond=None):
        return self.gaussian(x, s, t) + 0.3 * expand_like(t - s, x) * torch.sin(1.3 * x + 2 * t[:, None])

    def velocity(self, x, t, cond=None):
        return self.gaussian.velocity(x, t) + 0.3 * torch.sin(1.3 * x + 2 * t[:, None])


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
@pytest.mark.parametrize("name", TEACHER_VELOCITY)
def test_zero_at_the_exact_flow_and_only_there(name, interpolant, generator):
    gaussian = exact(interpolant)
    path, times = draw(gaussian, 500, generator)
    loss = OBJECTIVES[name](gaussian, gaussian.velocity, path, times)
    assert loss.per_sample.shape == (500,) and loss.per_sample.max() < 1e-10
    wrong = OBJECTIVES[name](Wrong(gaussian), gaussian.velocity, path, times).per_sample
    assert wrong.mean() > 1e-3 and (wrong > 1e-12).all()


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
    wrong = OBJECTIVES["trajectory"](Wrong(gaussian), gaussian.velocity, path, times).per_sample
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
    (s, t), (x,) = asked[0], states
    assert (s.reshape(6, -1)[[0, 1, 3]] == t.reshape(6, -1)[[0, 1, 3]]).all()
    steps, power = LEGS[2]
    one = torch.ones_like(times.s)
    end, _ = heun(gaussian.velocity, path.x_s, times.s, one, None, steps=steps, power=power)
    torch.testing.assert_close(loss, 3 / 6 * (end - path.x_s).square().mean(1))
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


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
def test_flow_matching_is_stationary_at_the_exact_velocity(interpolant, generator):
    gaussian, n = exact(interpolant), 20_000
    path, times = draw(gaussian, n, generator)

    def gradients(offset: float) -> Tensor:
        """Per-sample gradients (n, K) in the coefficients of K directions of the velocity."""
        theta = torch.zeros(n, 6, dtype=torch.float64, requires_grad=True)

        class Student:
            def velocity(self, x, t, cond=None):
                t = t[:, None]
                v = [torch.ones_like(x), x, t * x, x.flip(1), torch.sin(3 * x), t.square().expand_as(x)]
                return gaussian.velocity(x, t[:, 0]) + offset + (theta[:, None] * torch.stack(v, -1)).sum(-1)

        loss = OBJECTIVES["flow_matching"](Student(), gaussian.velocity, path, times)  # type: ignore
        return torch.autograd.grad(loss.per_sample.sum(), theta)[0]

    at_exact = gradients(0.0)
    assert (at_exact.mean(0).abs() < 4 * at_exact.std(0) / n**0.5).all()
    elsewhere = gradients(0.1)
    assert (elsewhere.mean(0).abs() > 4 * elsewhere.std(0) / n**0.5).any()


def small_map(kind: str, seed: int, prediction: str) -> NeuralFlowMap:
    """A float64 student of random weights, none of them zero."""
    torch.manual_seed(seed)
    if kind == "mlp":
        shape, network = (2,), MLP((2,), width=12, depth=1)
    else:
        shape = (1, 4, 4)
        network = DiT(shape, patch=2, dim=8, depth=1, heads=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return NeuralFlowMap(network, Linear(), shape, prediction=prediction).double()


def derivative(f: Callable[[Tensor], Tensor], t: Tensor, h: float = 2e-3) -> Tensor:
    """df/dt by a fourth-order central difference."""
    return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)


def definition(name: str, live: NeuralFlowMap, held: NeuralFlowMap, teacher, x: Tensor, times: Times):
    """The objective from its formula: ``held`` is the student under the stop-gradient."""
    s, m, t = times
    long = expand_like(t - s, x)
    u = live.average_velocity(x, s, t)
    landed = x + long * held.average_velocity(x, s, t)
    if name == "lsd":
        u = derivative(lambda t_: x + expand_like(t_ - s, x) * live.average_velocity(x, s, t_), t)
        target = teacher.velocity(landed, t)
    elif name == "lmd":
        change = derivative(lambda t_: held.average_velocity(x, s, t_), t)
        target = teacher.velocity(landed, t) - long * change
    elif name == "trajectory":
        return trajectory_definition(live, teacher, x, times)
    else:
        first, second = expand_like(m - s, x), expand_like(t - m, x)
        middle = x + first * held.average_velocity(x, s, m)
        end = middle + second * held.average_velocity(middle, m, t)
        on_diagonal = expand_like(t == s, x)
        target = torch.where(on_diagonal, teacher.velocity(x, s), (end - x) / long.clamp_min(1e-12))
    return (u - target).square().flatten(1).mean(1).mean()


def trajectory_definition(student: NeuralFlowMap, teacher: NeuralFlowMap, x: Tensor, times: Times) -> Tensor:
    """Jump by jump, on states that the objective's own solver gives."""
    at, states = [*times, torch.ones_like(times.s)], [x]
    for k, (steps, power) in enumerate(LEGS):
        states.append(heun(teacher.velocity, states[-1], at[k], at[k + 1], None, steps=steps, power=power)[0])
    total = torch.zeros(len(x), dtype=x.dtype)
    for i in range(3):
        for j in range(i + 1, 4):
            a, b = at[i], at[j]
            quotient = (states[j] - states[i]) / expand_like(b - a, x)
            error = student.average_velocity(states[i], a, b) - quotient
            total = total + (1 - a) ** 2 * error.square().flatten(1).mean(1) / 6
    return total.mean()


@pytest.mark.parametrize("prediction", ["velocity", "endpoint"])
@pytest.mark.parametrize("kind", ["mlp", "dit"])
@pytest.mark.parametrize("name", ["lsd", "lmd", "psd", "trajectory"])
@torch.no_grad()
def test_gradient_of_the_stop_gradient_objective(name, kind, prediction, generator):
    student, held, teacher = (small_map(kind, seed, prediction) for seed in (1, 1, 2))
    x_0, x_1 = torch.randn(2, 6, *student.data_shape, generator=generator, dtype=torch.float64)
    s = 0.8 * torch.rand(6, generator=generator, dtype=torch.float64)
    t = s + (0.95 - s) * torch.rand(6, generator=generator, dtype=torch.float64)
    if name == "psd":
        t[:2] = s[:2]
    times = Times(s, s + 0.3 * (t - s), t)
    path = sample_path(student.interpolant, x_0, x_1, s)

    parameters = list(student.parameters())
    with torch.enable_grad():
        loss = OBJECTIVES[name](student, teacher.velocity, path, times).per_sample.mean()
        gradient = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(
        loss.detach(), definition(name, student, held, teacher, path.x_s, times), rtol=1e-6, atol=0
    )
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        step, values = 1e-4, []
        for sign in (1, -1):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
            values.append(definition(name, student, held, teacher, path.x_s, times))
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * step * d)
        measured = float(values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(measured, rel=2e-4, abs=1e-6)
