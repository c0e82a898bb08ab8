"""Objectives vanish at the exact flow, see any other map, and lead back to the flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmtt.flow.interpolant import Linear, Trigonometric
from tests.train.closed_form import Bent, draw, exact
from train.losses import ANY_FLOW, OBJECTIVES, SEES_DATA, PathSample, Times, sum_of
from train.losses.base import FlowMapLoss, sample_path

PATHS = pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
SOLVED = {"trajectory"}
"""Objectives whose own ODE solver has an error; see test_losses_trajectory.py."""
TEACHER_VELOCITY = sorted(OBJECTIVES.keys() - set(SEES_DATA) - SOLVED)


@PATHS
@pytest.mark.parametrize("name", TEACHER_VELOCITY)
def test_zero_at_the_exact_flow_and_only_there(name, interpolant, generator):
    gaussian = exact(interpolant)
    path, times = draw(gaussian, 500, generator)
    loss = OBJECTIVES[name](gaussian, gaussian.velocity, path, times)
    assert loss.per_sample.shape == (500,) and loss.per_sample.max() < 1e-10
    wrong = OBJECTIVES[name](Bent(gaussian), gaussian.velocity, path, times).per_sample
    assert wrong.mean() > 1e-3 and (wrong > 1e-12).all()


@PATHS
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_gradient_step_leads_back_to_the_flow(name, interpolant, generator):
    """Gradient steps on how far the map is bent unbend it, and lower what stop-gradients do not hide."""
    gaussian = exact(interpolant)
    path, times = draw(gaussian, 2000, generator)
    losses, amounts = [], [torch.tensor(0.3, dtype=torch.float64)]
    for _ in range(4):
        amount = amounts[-1].clone().requires_grad_()
        loss = OBJECTIVES[name](Bent(gaussian, amount), gaussian.velocity, path, times).per_sample.mean()
        amounts.append(amounts[-1] - 0.05 * torch.autograd.grad(loss, amount)[0])
        losses.append(float(loss.detach()))
    assert all(a < b for a, b in zip(losses[1:], losses[:-1], strict=True)) and losses[-1] > 0
    assert all(0 < a < b for a, b in zip(amounts[1:], amounts[:-1], strict=True))


class Expansion:
    """The exact map plus a combination of fixed directions in u, one set of coefficients per sample."""

    def __init__(self, gaussian, n: int, offset: float) -> None:
        self.gaussian, self.interpolant, self.offset = gaussian, gaussian.interpolant, offset
        self.theta = torch.zeros(n, 6, dtype=torch.float64, requires_grad=True)

    def added(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        s, t = s[:, None], t[:, None]
        v = [
            torch.ones_like(x),
            x,
            s * x,
            x.flip(1),
            torch.sin(3 * x),
            (t - s / 2).square() * torch.ones_like(x),
        ]
        return self.offset + (self.theta[:, None] * torch.stack(v, -1)).sum(-1)

    def velocity(self, x, t, cond=None):
        return self.gaussian.velocity(x, t) + self.added(x, t, t)

    def __call__(self, x, s, t, cond=None):
        return self.gaussian(x, s, t) + (t - s)[:, None] * self.added(x, s, t)


@PATHS
@pytest.mark.parametrize("name", SEES_DATA)
def test_data_velocity_objectives_are_stationary_at_the_exact_flow(name, interpolant, generator):
    """The mean gradient is zero within 4 standard errors there, and is not for another map."""
    gaussian, n = exact(interpolant), 20_000
    path, times = draw(gaussian, n, generator)

    def gradients(offset: float) -> Tensor:
        """Per-sample gradients (n, K) in the coefficients of K directions."""
        student = Expansion(gaussian, n, offset)
        loss = OBJECTIVES[name](student, gaussian.velocity, path, times).per_sample
        return torch.autograd.grad(loss.sum(), student.theta)[0]

    at_exact = gradients(0.0)
    assert (at_exact.mean(0).abs() < 4 * at_exact.std(0) / n**0.5).all()
    elsewhere = gradients(0.1)
    assert (elsewhere.mean(0).abs() > 4 * elsewhere.std(0) / n**0.5).any()


def test_lagrangian_with_the_data_velocity_would_be_wrong(generator):
    """The data velocity may stand for b_s (mean_flow), not for b_t(X_{s,t}): that teaches the denoiser."""
    gaussian, n = exact(Linear()), 20_000
    path, times = draw(gaussian, n, generator)
    student = Expansion(gaussian, n, 0.0)

    def data_velocity(x, t, cond=None):
        return path.velocity_s

    loss = OBJECTIVES["lmd"](student, data_velocity, path, times).per_sample
    gradient = torch.autograd.grad(loss.sum(), student.theta)[0]
    assert (gradient.mean(0).abs() > 4 * gradient.std(0) / n**0.5).any()


@pytest.mark.parametrize("name", ANY_FLOW)
def test_the_semigroup_alone_is_satisfied_by_any_flow(name, generator):
    gaussian, other = exact(Linear()), exact(Trigonometric())
    path, times = draw(gaussian, 50, generator)
    assert OBJECTIVES[name](other, gaussian.velocity, path, times).per_sample.max() < 1e-10
    assert OBJECTIVES["lmd"](other, gaussian.velocity, path, times).per_sample.mean() > 1e-2


def test_intermediate_times(generator):
    """psd_m is half-way whatever the sampler says; psd_u and psd take the sampler's."""
    gaussian = exact(Linear())
    path, times = draw(gaussian, 50, generator)
    middle = times._replace(u=(times.s + times.t) / 2)

    def loss(name: str, at: Times) -> Tensor:
        return OBJECTIVES[name](Bent(gaussian), gaussian.velocity, path, at).per_sample

    assert torch.equal(loss("psd_m", times), loss("psd_u", middle))
    assert torch.equal(loss("psd", times), loss("psd_u", times))
    assert not torch.allclose(loss("psd_m", times), loss("psd_u", times))


def test_consistency_is_at_time_one_whatever_is_asked(generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 50, generator)
    asked = []

    class Recorded(Bent):
        def __call__(self, x, s, t, cond=None):
            asked.append(t)
            return super().__call__(x, s, t, cond)

    loss = OBJECTIVES["consistency"](Recorded(gaussian), gaussian.velocity, path, times).per_sample
    assert asked and all(bool((t == 1).all()) for t in asked)
    end = times._replace(t=torch.ones_like(times.t))
    assert torch.equal(loss, OBJECTIVES["emd"](Bent(gaussian), gaussian.velocity, path, end).per_sample)


def mixed(gaussian, n: int, generator: torch.Generator) -> tuple[PathSample, Times, Tensor]:
    """Points of which the first third has t = s."""
    path, times = draw(gaussian, n, generator)
    here = torch.arange(n) < n // 3
    u, t = torch.where(here, times.s, times.u), torch.where(here, times.s, times.t)
    return path, Times(times.s, u, t), here


def test_tvm_is_its_two_terms(generator):
    gaussian = exact(Linear())
    path, times, here = mixed(gaussian, 60, generator)
    student = Bent(gaussian)
    end = sample_path(gaussian.interpolant, path.x_0, path.x_1, times.t)
    terminal = OBJECTIVES["lsd"](student, gaussian.velocity, path, times).per_sample
    anchor = OBJECTIVES["flow_matching"](
        student, gaussian.velocity, end, times._replace(s=times.t)
    ).per_sample
    out = OBJECTIVES["tvm"](student, gaussian.velocity, path, times)
    torch.testing.assert_close(out.per_sample, torch.where(here, 0, terminal) + anchor)
    assert (terminal[here] > 0).any()


def rows_of(loss: FlowMapLoss, path: PathSample, times: Times, rows: Tensor, student, teacher) -> Tensor:
    part = PathSample(*(v[rows] for v in path)), Times(*(v[rows] for v in times))
    return loss(student, teacher, *part).per_sample


def test_a_sum_gives_each_kind_its_samples(generator):
    gaussian = exact(Linear())
    path, times, here = mixed(gaussian, 60, generator)
    args = (Bent(gaussian), gaussian.velocity)
    out = sum_of({"lmd": 0.5, "diagonal": 2.0, "psd_m": 3.0, "flow_matching": 1.0})(*args, path, times)
    expected = torch.zeros(60, dtype=torch.float64)
    for name, weight, rows in (("lmd", 0.5, ~here), ("psd_m", 3, ~here), ("diagonal", 2, here)):
        expected[rows] += weight * rows_of(OBJECTIVES[name], path, times, rows, *args)
        torch.testing.assert_close(
            out.logs[f"{name}/loss"],
            expected[rows].new_tensor(float(rows_of(OBJECTIVES[name], path, times, rows, *args).mean())),
        )
    expected[here] += rows_of(OBJECTIVES["flow_matching"], path, times, here, *args)
    torch.testing.assert_close(out.per_sample, expected)
    psd = OBJECTIVES["psd"](*args, path, times).per_sample
    torch.testing.assert_close(psd, sum_of({"psd_u": 1.0, "diagonal": 1.0})(*args, path, times).per_sample)


@pytest.mark.parametrize("names", [("lmd", "psd_m"), ("flow_matching", "diagonal")])
def test_a_sum_of_one_kind_has_the_whole_batch(names, generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 30, generator)
    args = (Bent(gaussian), gaussian.velocity, path, times)
    one, two = (OBJECTIVES[name](*args).per_sample for name in names)
    out = sum_of({names[0]: 0.25, names[1]: 4.0})(*args)
    torch.testing.assert_close(out.per_sample, 0.25 * one + 4 * two)


def test_a_term_without_samples_is_left_out(generator):
    gaussian = exact(Linear())
    path, times = draw(gaussian, 10, generator)
    out = sum_of({"lmd": 1.0, "diagonal": 1.0})(Bent(gaussian), gaussian.velocity, path, times)
    assert "lmd/loss" in out.logs and "diagonal/loss" not in out.logs
    assert "lmd/tangent_norm" in out.logs and bool((out.per_sample > 0).all())


def test_every_term_gets_its_samples_conditions(generator):
    gaussian = exact(Linear())
    path, times, here = mixed(gaussian, 30, generator)
    shift = torch.randn(30, 2, generator=generator, dtype=torch.float64)

    def moved(x, t, cond=None):
        assert cond is not None
        return gaussian.velocity(x, t) + cond["shift"]

    class Student(Bent):
        def velocity(self, x, t, cond=None):
            return moved(x, t, cond)

    args = (Student(gaussian, 0.0), moved, path, times, {"shift": shift})
    out = sum_of({"lmd": 1.0, "diagonal": 1.0})(*args).per_sample
    assert out[here].max() < 1e-20
    torch.testing.assert_close(out[~here], shift[~here].square().mean(1))
