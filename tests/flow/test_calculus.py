"""Derivatives in the times against finite differences and against the closed-form Gaussian map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmtt.flow.calculus import average_velocity, eulerian_derivative, jvp, partial_t
from fmtt.flow.interpolant import Interpolant, Linear, Trigonometric
from fmtt.flow.oracle import Gaussian
from fmtt.types import Cond, Time

PATHS = [Linear(), Trigonometric()]


class WrongMap:
    """A Gaussian's map plus a smooth error that vanishes at t = 1."""

    def __init__(self) -> None:
        self.exact = Gaussian([0.5, -1.0], [0.3, 0.8])
        self.interpolant: Interpolant = self.exact.interpolant

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        assert isinstance(s, Tensor) and isinstance(t, Tensor)
        error = 0.35 * ((t - s) * (1 - s))[:, None] * torch.sin(1.3 * x + 2 * s[:, None] * t[:, None])
        return self.exact(x, s, t) + error

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return self.exact.velocity(x, t)


def gaussian(path: Interpolant) -> Gaussian:
    return Gaussian([0.5, -1.0, 2.0], [[1.0, 0.4, 0.1], [0.4, 0.5, 0.0], [0.1, 0.0, 0.2]], path)


def draw(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    x, s = 2 * torch.randn(n, d, dtype=torch.float64), torch.rand(n, dtype=torch.float64)
    return x, s, s + (1 - s) * torch.rand(n, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_lagrangian_identity(path: Interpolant):
    flow_map = gaussian(path)
    x, s, t = draw(256, 3)
    end, derivative = partial_t(flow_map, x, s, t)
    assert torch.equal(end, flow_map(x, s, t))
    assert (derivative - flow_map.velocity(end, t)).abs().max() < 1e-10


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_eulerian_identity(path: Interpolant):
    flow_map = gaussian(path)
    x, s, t = draw(256, 3)
    end, residual = eulerian_derivative(flow_map, x, s, t)
    assert torch.equal(end, flow_map(x, s, t))
    assert residual.abs().max() < 1e-10
    wrong = eulerian_derivative(flow_map, x, s, t, velocity=flow_map.velocity(x, s) + 0.1)[1]
    assert wrong.abs().max() > 1e-2


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_semigroup_identity(path: Interpolant):
    flow_map = gaussian(path)
    x, s, t = draw(256, 3)
    u = s + (t - s) * torch.rand(256, dtype=torch.float64)
    assert (flow_map(flow_map(x, s, u), u, t) - flow_map(x, s, t)).abs().max() < 1e-10
    assert (flow_map(flow_map(x, s, t), t, s) - x).abs().max() < 1e-10


def test_derivatives_of_a_wrong_map_match_finite_differences():
    flow_map, h = WrongMap(), 1e-5
    x, s, t = draw(64, 2)
    s, t = 0.05 + 0.9 * s, 0.05 + 0.9 * t
    _, derivative = partial_t(flow_map, x, s, t)
    difference = (flow_map(x, s, t + h) - flow_map(x, s, t - h)) / (2 * h)
    torch.testing.assert_close(derivative, difference, rtol=0, atol=1e-8)
    _, residual = eulerian_derivative(flow_map, x, s, t)
    b = flow_map.velocity(x, s)
    difference = (flow_map(x + h * b, s + h, t) - flow_map(x - h * b, s - h, t)) / (2 * h)
    torch.testing.assert_close(residual, difference, rtol=0, atol=1e-8)
    assert residual.abs().max() > 0.05


def test_average_velocity_of_a_map_without_its_own():
    flow_map, h = WrongMap(), 1e-5
    x, s, t = draw(64, 2)
    s, t = 0.4 * s, 0.5 + 0.4 * t
    u, derivative = average_velocity(flow_map, x, s, t, derivative=True)
    torch.testing.assert_close(x + (t - s)[:, None] * u, flow_map(x, s, t))
    difference = (average_velocity(flow_map, x, s, t + h)[0] - average_velocity(flow_map, x, s, t - h)[0]) / (
        2 * h
    )
    torch.testing.assert_close(derivative, difference, rtol=0, atol=1e-8)
    assert torch.equal(average_velocity(flow_map, x, s, t)[1], torch.zeros_like(x))


def test_times_may_be_floats():
    flow_map = gaussian(Linear())
    x, _, _ = draw(8, 3)
    times = torch.full((8,), 0.2, dtype=torch.float64), torch.full((8,), 0.7, dtype=torch.float64)
    for f in (partial_t, eulerian_derivative):
        torch.testing.assert_close(f(flow_map, x, 0.2, 0.7), f(flow_map, x, *times), rtol=0, atol=0)


def test_jvp_goes_through_attention():
    q, v = torch.randn(2, 1, 2, 5, 4, dtype=torch.float64)

    def attend(q_: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q_, q_, q_)

    _, tangent = jvp(attend, (q,), (v,))
    difference = (attend(q + 1e-5 * v) - attend(q - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(tangent, difference, rtol=0, atol=1e-8)
