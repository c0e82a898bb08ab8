"""The reference solver and Euler steps against the closed-form Gaussian map."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.flow.ode import euler, solve
from fmtt.flow.oracle import Gaussian
from fmtt.types import Cond, Time

GAUSSIAN = Gaussian([0.5, -1.0], [[1.0, 0.4], [0.4, 0.5]])


def states(n: int = 32) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=repr)
@pytest.mark.parametrize("tol", [1e-5, 1e-9])
def test_solution_is_the_flow_map_to_the_tolerance(path: Linear, tol: float):
    flow_map = Gaussian([0.5, -1.0], [[1.0, 0.4], [0.4, 0.5]], path)
    x = states()
    end = solve(flow_map.velocity, x, 0.0, 1.0, tol=tol)
    assert (end - flow_map(x, 0.0, 1.0)).abs().max() < 20 * tol


def test_solves_between_any_two_times_in_either_direction():
    x = states()
    for s, t in ((0.2, 0.9), (0.9, 0.2)):
        end = solve(GAUSSIAN.velocity, x, s, t, tol=1e-9)
        torch.testing.assert_close(end, GAUSSIAN(x, s, t), rtol=0, atol=1e-7)
    assert torch.equal(solve(GAUSSIAN.velocity, x, 0.4, 0.4), x)


def test_states_at_intermediate_times():
    x = states()
    times = [0.0, 0.3, 0.35, 1.0]
    path = solve(GAUSSIAN.velocity, x, 0.0, 1.0, tol=1e-8, times=times)
    assert path.shape == (4, 32, 2) and torch.equal(path[0], x)
    for state, t in zip(path, times, strict=True):
        torch.testing.assert_close(state, GAUSSIAN(x, 0.0, t), rtol=0, atol=1e-6)
    part = solve(GAUSSIAN.velocity, x, 0.0, 1.0, tol=1e-8, times=torch.tensor(times[1:3]))
    torch.testing.assert_close(part, path[1:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("times", [[0.5, 0.4], [0.2, 0.2], [0.5, 1.2], [-0.1, 0.5]])
def test_times_that_do_not_run_along_the_interval_are_refused(times: list[float]):
    with pytest.raises(ValueError, match="times must run strictly"):
        solve(GAUSSIAN.velocity, states(), 0.0, 1.0, times=times)


def test_velocity_is_never_asked_for_outside_the_interval():
    asked: list[float] = []

    def velocity(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        assert isinstance(t, Tensor) and t.shape == (32,)
        asked.extend(t.tolist())
        return GAUSSIAN.velocity(x, t)

    solve(velocity, states(), 0.0, 1.0, times=[0.5, 1.0])
    assert min(asked) >= 0 and max(asked) <= 1


def test_conditions_and_gradients_pass_through():
    x = states().requires_grad_()

    def velocity(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        assert cond is not None
        return GAUSSIAN.velocity(x, t) + cond["push"]

    cond = {"push": torch.zeros(32, 2, dtype=torch.float64, requires_grad=True)}
    (exact,) = torch.autograd.grad(GAUSSIAN(x, 0.0, 1.0).square().sum(), x)
    grad, push = torch.autograd.grad(
        solve(velocity, x, 0.0, 1.0, cond, tol=1e-9).square().sum(), (x, cond["push"])
    )
    torch.testing.assert_close(grad, exact, rtol=0, atol=1e-6)
    assert push.abs().max() > 0


def test_a_velocity_that_is_not_finite_is_reported():
    with pytest.raises(FloatingPointError, match="cannot be solved to tolerance"):
        solve(lambda x, t, cond=None: x * float("nan"), states(), 0.0, 1.0)


def test_without_the_solvers_package_the_message_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UserError, match=r"needs torchdiffeq: pip install 'fmtt\[evaluate\]'"):
        solve(GAUSSIAN.velocity, states(2), 0.0, 1.0)


def test_an_empty_batch_stays_empty():
    assert solve(GAUSSIAN.velocity, states(0), 0.0, 1.0).shape == (0, 2)


def test_euler_converges_at_first_order():
    x = states()
    errors = []
    for steps in (50, 100):
        end = euler(GAUSSIAN.velocity, x, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        errors.append(float((end - GAUSSIAN(x, 0.0, 1.0)).square().mean().sqrt()))
    assert errors[1] < 0.02 and 1.8 < errors[0] / errors[1] < 2.2


def test_one_euler_step_to_the_end_is_the_denoiser_on_the_linear_path():
    x = states()
    torch.testing.assert_close(euler(GAUSSIAN.velocity, x, [0.3, 1.0]), GAUSSIAN.denoiser(x, 0.3))


def test_euler_takes_a_grid_per_sample():
    x = states(3)
    starts = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64)
    grid = starts + (1 - starts) * torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]  # (K + 1, B)
    alone = torch.cat([euler(GAUSSIAN.velocity, x[i : i + 1], grid[:, i]) for i in range(3)])
    torch.testing.assert_close(euler(GAUSSIAN.velocity, x, grid), alone)
