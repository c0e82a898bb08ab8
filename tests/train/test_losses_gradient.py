"""Every objective has the gradient of its definition, by finite differences in float64; compiled is eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.dit import DiT
from fmtt.models.mlp import MLP
from fmtt.tensor import expand_like
from train.losses import OBJECTIVES, PathSample, Times
from train.losses.base import mean_square, sample_path
from train.losses.trajectory import JUMPS, follow, jump_ends, shares, time_grid


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


def derivative(f: Callable[[Tensor], Tensor], like: Tensor, h: float = 5e-4) -> Tensor:
    """df/dh at h = 0 (B,) by a fourth-order central difference."""
    one, two = torch.full_like(like, h), torch.full_like(like, 2 * h)
    return (8 * (f(one) - f(-one)) - (f(two) - f(-two))) / (12 * h)


def definition(
    name: str,
    live: NeuralFlowMap,
    held: NeuralFlowMap,
    teacher: NeuralFlowMap,
    path: PathSample,
    times: Times,
) -> Tensor:
    """The objective from its formula (B,): ``held`` is the student under the stop-gradient."""
    s, m, t = times
    x = path.x_s
    long = expand_like(t - s, x)
    landed = x + long * held.average_velocity(x, s, t)
    if name == "flow_matching":
        return mean_square(live.velocity(x, s) - path.velocity_s)
    if name == "diagonal":
        return mean_square(live.velocity(x, s) - teacher.velocity(x, s))
    if name in ("lsd", "tvm"):
        change = derivative(lambda h: x + expand_like(t + h - s, x) * live.average_velocity(x, s, t + h), t)
        loss = mean_square(change - teacher.velocity(landed, t))
        if name == "lsd":
            return loss
        end = sample_path(live.interpolant, path.x_0, path.x_1, t)
        return torch.where(s < t, loss, 0) + mean_square(live.velocity(end.x_s, t) - end.velocity_s)
    if name == "lmd":
        change = derivative(lambda h: held.average_velocity(x, s, t + h), t)
        return mean_square(live.average_velocity(x, s, t) - teacher.velocity(landed, t) + long * change)
    if name == "esd":
        return esd_definition(live, held, teacher.velocity(x, s), x, s, t)
    if name in ("emd", "mean_flow", "consistency"):
        b = path.velocity_s if name == "mean_flow" else teacher.velocity(x, s)
        t = torch.ones_like(t) if name == "consistency" else t
        change = derivative(lambda h: held.average_velocity(x + expand_like(h, x) * b, s + h, t), t)
        return mean_square(live.average_velocity(x, s, t) - b - expand_like(t - s, x) * change)
    if name == "trajectory":
        return trajectory_definition(live, teacher, x, times)
    m = (s + t) / 2 if name == "psd_m" else m
    middle = x + expand_like(m - s, x) * held.average_velocity(x, s, m)
    end = middle + expand_like(t - m, x) * held.average_velocity(middle, m, t)
    instead = teacher.velocity(x, s) if name == "psd" else held.velocity(x, s)
    target = torch.where(long == 0, instead, (end - x) / long.clamp_min(1e-12))
    return mean_square(live.average_velocity(x, s, t) - target)


def esd_definition(
    live: NeuralFlowMap, held: NeuralFlowMap, b: Tensor, x: Tensor, s: Tensor, t: Tensor
) -> Tensor:
    """The derivative in s of the live map, and in x of the held one."""

    def landed(student: NeuralFlowMap, x_: Tensor, s_: Tensor) -> Tensor:
        return x_ + expand_like(t - s_, x) * student.average_velocity(x_, s_, t)

    in_time = derivative(lambda h: landed(live, x, s + h), t)
    in_space = derivative(lambda h: landed(held, x + expand_like(h, x) * b, s), t)
    return mean_square(in_time + in_space)


def trajectory_definition(student: NeuralFlowMap, teacher: NeuralFlowMap, x: Tensor, times: Times) -> Tensor:
    """Sample by sample: its jumps between the points that the objective chose."""
    first, second = shares(times)
    grid, legs = time_grid(times.s, times.t, first)
    true, total = follow(teacher.velocity, x, grid, legs, None), []
    starts, ends = jump_ends(legs, first, second)
    for n in range(len(x)):
        t, states, loss = true.t[n], true.states[n], torch.zeros((), dtype=x.dtype)

        def u(place: Tensor, i: int, j: int, t: Tensor = t) -> Tensor:
            return student.average_velocity(place[None], t[i : i + 1], t[j : j + 1])[0]

        for i, j in zip(starts[:, n].tolist(), ends[:, n].tolist(), strict=True):
            target = true.velocities[n, i] if t[i] == t[j] else (states[j] - states[i]) / (t[j] - t[i])
            loss = loss + (1 - t[i]) ** 2 * (u(states[i], i, j) - target).square().mean() / JUMPS
        total.append(loss)
    return torch.stack(total)


def problem(kind: str, prediction: str, generator: torch.Generator, *, on_diagonal: int):
    """(student, its copy, teacher, path, times): six samples, the first ``on_diagonal`` with t = s."""
    student, held, teacher = (small_map(kind, seed, prediction) for seed in (1, 1, 2))
    x_0, x_1 = torch.randn(2, 6, *student.data_shape, generator=generator, dtype=torch.float64)
    s = 0.8 * torch.rand(6, generator=generator, dtype=torch.float64)
    t = s + (0.95 - s) * torch.rand(6, generator=generator, dtype=torch.float64)
    t[:on_diagonal] = s[:on_diagonal]
    times = Times(s, s + 0.3 * (t - s), t)
    return student, held, teacher, sample_path(student.interpolant, x_0, x_1, s), times


@pytest.mark.parametrize(
    "kind, prediction",
    [
        ("mlp", "endpoint"),
        ("dit", "velocity"),
        pytest.param("mlp", "velocity", marks=pytest.mark.slow),
        pytest.param("dit", "endpoint", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@torch.no_grad()
def test_gradient_of_the_stop_gradient_objective(name, kind, prediction, generator):
    student, held, teacher, path, times = problem(kind, prediction, generator, on_diagonal=2)
    parameters = list(student.parameters())

    def value() -> Tensor:
        return definition(name, student, held, teacher, path, times)

    with torch.enable_grad():
        loss = OBJECTIVES[name](student, teacher.velocity, path, times).per_sample
        gradient = torch.autograd.grad(loss.mean(), parameters, materialize_grads=True)
    torch.testing.assert_close(loss.detach(), value(), rtol=1e-6, atol=1e-12)
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        step, values = 1e-4, []
        for sign in (1, -1):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
            values.append(value().mean())
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * step * d)
        measured = float(values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(measured, rel=2e-4, abs=1e-6)


@torch.no_grad()
def test_the_check_sees_a_wrong_stop_gradient(generator):
    """The gradient of esd is not that of the same value without its stop-gradient."""
    student, held, teacher, path, times = problem("mlp", "velocity", generator, on_diagonal=0)
    b, (s, _, t) = teacher.velocity(path.x_s, times.s), times
    parameters = list(student.parameters())
    with torch.enable_grad():
        stopped = esd_definition(student, held, b, path.x_s, s, t).mean()
        right = torch.autograd.grad(stopped, parameters)
        wrong = torch.autograd.grad(esd_definition(student, student, b, path.x_s, s, t).mean(), parameters)
        loss = OBJECTIVES["esd"](student, teacher.velocity, path, times).per_sample.mean()
        gradient = torch.autograd.grad(loss, parameters)
    own, other = (torch.cat([g.flatten() for g in parts]) for parts in (right, wrong))
    mine = torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-8)
    assert (mine - other).norm() > 0.05 * mine.norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "dit"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_compiled_equals_eager(name, kind, generator):
    torch._dynamo.reset()
    student, _, teacher, path, times = problem(kind, "velocity", generator, on_diagonal=2)
    parameters = list(student.parameters())

    def step(path: PathSample, times: Times) -> Tensor:
        return OBJECTIVES[name](student, teacher.velocity, path, times).per_sample

    results = []
    # Where the gradient goes through the tangent, inductor would reuse the buffer of a tangent that is zero.
    through = name in ("lsd", "esd", "tvm")
    for run in (step, torch.compile(step, options={"allow_buffer_reuse": not through})):
        loss = run(path, times)
        results.append((loss.detach(), *torch.autograd.grad(loss.mean(), parameters, materialize_grads=True)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-7, atol=1e-9)
