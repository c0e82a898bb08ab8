"""One step: the residual against forward mode, kernels against their formulas, rewards checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.calculus import jvp
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.flow.oracle import Gaussian
from fmtt.steering import dynamics
from fmtt.steering import lookahead as lookaheads
from fmtt.steering.cost import Cost
from fmtt.steering.dynamics import Evaluation, Kernel, Needs, Problem

ALL = Needs(velocity=True, value=True, gradient=True, endpoint=True, laplacian=True, residual=True)


def reward(x: Tensor, cond: Any = None) -> Tensor:
    return torch.sin(x).sum(1) + x[:, 0] * x[:, 1]


def problem_of(flow: Any, name: str, steps: int = 2, **options: Any) -> Problem:
    ahead = lookaheads.build(name, steps, flow, flow.velocity)
    settings = {"reward": reward, "cond": None, "chunk_size": None, "cost": Cost(), **options}
    return Problem(flow.velocity, flow.interpolant, ahead, **settings)


@pytest.fixture(params=[Linear, Trigonometric], ids=["linear", "trigonometric"])
def flow(request: Any) -> Gaussian:
    return Gaussian([0.4, -0.3], [0.5, 1.7], request.param())


NAMES = [name for name in lookaheads.NAMES if name != "ode"]  # whose solver knows no forward mode


@pytest.mark.parametrize("name", NAMES)
def test_residual_is_the_derivative_along_the_flow(flow: Gaussian, name: str) -> None:
    """c = (d/dt + b . grad) f, from a jvp of f along (b, 1)."""
    problem = problem_of(flow, name)
    x, t = torch.randn(9, 2, dtype=torch.float64), torch.full((9,), 0.35, dtype=torch.float64)

    def f(x: Tensor, t: Tensor) -> Tensor:
        b = flow.velocity(x, t) if problem.lookahead.uses_velocity else None
        return reward(problem.lookahead(x, t, None, b))

    value, tangent = jvp(f, (x, t), (flow.velocity(x, t), torch.ones_like(t)))
    found = dynamics.evaluate(problem, x, 0.35, ALL)
    torch.testing.assert_close(found.value, value)
    torch.testing.assert_close(found.residual, tangent)
    if name == "flow_map":  # the Eulerian identity
        torch.testing.assert_close(found.residual, torch.zeros(9).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(product_mixture: Any, name: str) -> None:
    flow, x = product_mixture(2), torch.randn(11, 2, dtype=torch.float64)

    def found(size: int | None) -> Evaluation:
        draws = torch.Generator().manual_seed(0)
        return dynamics.evaluate(problem_of(flow, name, chunk_size=size), x, 0.4, ALL, generator=draws)

    whole = found(None)
    for size in (1, 4, 11, 50):
        parts = found(size)
        for a, b in zip(whole, parts, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_no_network_at_the_end(flow: Gaussian) -> None:
    problem, x = problem_of(flow, "flow_map"), torch.randn(5, 2, dtype=torch.float64)
    found = dynamics.evaluate(problem, x, 1.0, Needs(value=True))
    torch.testing.assert_close(found.value, reward(x))
    assert problem.cost.passes == 0 and problem.cost.reward_calls == 5


@pytest.mark.parametrize(("t", "t_next"), [(0.0, 0.1), (0.5, 0.6), (0.8, 0.9)])
def test_sde_kernel_is_euler_maruyama(flow: Gaussian, t: float, t_next: float) -> None:
    x, eps = torch.randn(5, 2, dtype=torch.float64), 0.7
    kernel = dynamics.sde_kernel(flow.interpolant, x, flow.velocity(x, t), t, t_next, eps)
    drift = flow.velocity(x, t) + eps * flow.score(x, t)
    torch.testing.assert_close(kernel.mean, x + (t_next - t) * drift)
    assert kernel.variance == pytest.approx(2 * eps * (t_next - t))


def test_density_ratio_matches_the_normals() -> None:
    m, g, xi = torch.randn(3, 6, 2, dtype=torch.float64)
    x, ratio = dynamics.guided(Kernel(m, 0.3), g, xi)
    law = torch.distributions.Normal(m, 0.3**0.5), torch.distributions.Normal(m + g, 0.3**0.5)
    torch.testing.assert_close(ratio, (law[0].log_prob(x) - law[1].log_prob(x)).sum(1))
    torch.testing.assert_close(x, m + g + 0.3**0.5 * xi)


def test_deterministic_steps_take_no_guidance() -> None:
    m, g = torch.randn(2, 6, 2)
    x, ratio = dynamics.guided(Kernel(m, 0.0), g, None)
    assert torch.equal(x, m) and not ratio.any()


def test_renoising_an_exact_map_keeps_the_marginal(generator: torch.Generator) -> None:
    flow = Gaussian([0.6], 0.3)
    x = flow.sample(200_000, generator, t=0.2)
    kernel = dynamics.renoise_kernel(flow.interpolant, flow(x, 0.2, 1.0), 0.7)
    x = kernel.mean + kernel.variance**0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    assert float(x.mean()) == pytest.approx(0.7 * 0.6, abs=0.005)
    assert float(x.var()) == pytest.approx(0.3**2 + 0.7**2 * 0.3, abs=0.005)


def test_constant_path_of_interpolation(flow: Gaussian) -> None:
    x0, x1 = torch.randn(2, 5, 2, dtype=torch.float64)
    here, there = (flow.interpolant.interpolate(x0, x1, t) for t in (0.3, 0.8))
    torch.testing.assert_close(dynamics.interpolate_towards(flow.interpolant, here, x1, 0.3, 0.8), there)


def test_exact_increment_telescopes_where_nothing_is_random() -> None:
    before, after = (Evaluation(value=torch.tensor([v]).double()) for v in (2.0, 3.0))
    found = dynamics.exact_increment(before, after, (0.5, 1.0), 0.5, deterministic=True)
    assert float(found) == 2.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x, c: x, "shape"),
        (lambda x, c: x.sum(), "shape"),
        (lambda x, c: 1.0, "shape"),
        (lambda x, c: x[:, 0] / 0.0, "finite"),
        (lambda x, c: x[:, 0].round().detach(), "no gradient"),
    ],
)
def test_bad_rewards_are_explained(flow: Gaussian, bad: Any, message: str) -> None:
    problem, x = problem_of(flow, "flow_map", reward=bad), torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(UserError, match=message):
        dynamics.evaluate(problem, x, 0.5, ALL)
