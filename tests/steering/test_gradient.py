"""Random probes: Hutchinson's Laplacian, zeroth-order gradients, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.flow.oracle import Gaussian
from fmtt.steering import dynamics
from fmtt.steering import lookahead as lookaheads
from fmtt.steering.cost import Cost
from fmtt.steering.dynamics import Needs, Probes, Problem

FLOW = Gaussian([0.4, -0.3, 0.1], [0.5, 1.7, 0.8])
A = torch.tensor([[1.0, 0.6, -0.4], [0.6, -2.0, 0.3], [-0.4, 0.3, 0.5]], dtype=torch.float64)
B = 40_000


def quadratic(x: Tensor, cond: Any = None) -> Tensor:
    return ((x @ A) * x).sum(1) / 2 + x[:, 0]


def problem_of(name: str, probes: Probes, reward: Any = quadratic, **options: Any) -> Problem:
    ahead = lookaheads.build(name, 1, FLOW, FLOW.velocity)
    return Problem(
        FLOW.velocity, FLOW.interpolant, ahead, reward, None, options.get("chunk_size"), Cost(), probes
    )


def evaluate(problem: Problem, x: Tensor, t: float, **needs: bool) -> dynamics.Evaluation:
    generator = torch.Generator().manual_seed(3)
    return dynamics.evaluate(problem, x, t, Needs(value=True, gradient=True, **needs), generator=generator)


def langevin(x: Tensor, t: float, name: str) -> tuple[Tensor, Tensor]:
    """(L f, Hessian of f) at one point x (1, 3), by automatic differentiation of the closed forms."""
    ahead = problem_of(name, Probes()).lookahead

    def f(y: Tensor) -> Tensor:
        y, now = y[None], torch.tensor([t], dtype=torch.float64)
        return quadratic(ahead(y, now, None, FLOW.velocity(y, now) if ahead.uses_velocity else None))[0]

    hessian = torch.func.hessian(f)(x[0])
    gradient = torch.func.grad(f)(x[0])
    return hessian.trace() + gradient @ FLOW.score(x, t)[0], hessian


@pytest.mark.parametrize("count", (1, 4))
@pytest.mark.parametrize("name", ("none", "denoiser", "flow_map"))
def test_the_laplacian_is_unbiased_with_the_stated_variance(name: str, count: int) -> None:
    x, t = torch.tensor([[0.3, -0.8, 0.5]], dtype=torch.float64), 0.4
    problem = problem_of(name, Probes(count))
    known = evaluate(problem, x.expand(B, 3), t, velocity=True, laplacian=True).langevin
    assert known is not None
    expected, hessian = langevin(x, t, name)
    assert abs(known.mean() - expected) < 4 * known.std() / B**0.5
    off_diagonal = hessian.square().sum() - hessian.diagonal().square().sum()
    assert float(known.var()) == pytest.approx(2 * float(off_diagonal) / count, rel=0.05)
    assert abs(known.mean() - 1.05 * expected) > 4 * known.std() / B**0.5


def test_a_reward_without_interactions_has_no_noise_and_a_linear_one_no_laplacian() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    apart = problem_of("none", Probes(), lambda y, c: torch.sin(y).sum(1))
    found = evaluate(apart, x, 0.5, velocity=True, laplacian=True).langevin
    torch.testing.assert_close(found, (torch.cos(x) * FLOW.score(x, 0.5) - torch.sin(x)).sum(1))
    linear = problem_of("none", Probes(), lambda y, c: y[:, 0])
    torch.testing.assert_close(
        evaluate(linear, x, 0.5, velocity=True, laplacian=True).langevin, FLOW.score(x, 0.5)[:, 0]
    )


def test_the_laplacian_passes_through_attention() -> None:
    class Attention:
        interpolant = FLOW.interpolant

        def velocity(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
            tokens = x[:, None, :, None]
            return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, :, 0]

        def __call__(self, x: Tensor, s: Any, t: Any, cond: Any = None) -> Tensor:
            return x + (1 - s)[:, None] * self.velocity(x, s)

    result = fmtt.tilt(
        Attention(), quadratic, num_particles=4, num_steps=4, data_shape=(3,), chi=0.1, dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert result.log_weights.isfinite().all()


@pytest.mark.parametrize("name", ("none", "denoiser", "flow_map"))
def test_the_zeroth_gradient_is_unbiased_for_a_quadratic(name: str) -> None:
    """An antithetic pair is exact to second order; the reward itself is never differentiated."""
    x, t = torch.tensor([[0.3, -0.8, 0.5]], dtype=torch.float64), 0.4
    seen: list[bool] = []

    def reward(y: Tensor, cond: Any = None) -> Tensor:
        seen.append(y.requires_grad)
        return quadratic(y).detach()

    problem = problem_of(name, Probes(2, zeroth=True, scale=0.7), reward)
    found = evaluate(problem, x.expand(B, 3), t).gradient
    truth = evaluate(problem_of(name, Probes()), x, t).gradient
    assert found is not None and truth is not None and not any(seen)
    error = found.std(0) / B**0.5
    assert ((found.mean(0) - truth[0]).abs() < 4 * error).all()
    assert ((found.mean(0) - 1.1 * truth[0]).abs() > 4 * error).any()
    assert problem.cost.reward_calls == B * (1 + 2 * 2)


def test_chunks_see_the_same_probes() -> None:
    x = torch.randn(11, 3, dtype=torch.float64)
    for probes, laplacian in ((Probes(3, zeroth=True), False), (Probes(3), True)):
        whole, parts = (
            evaluate(
                problem_of("flow_map", probes, chunk_size=size), x, 0.4, velocity=True, laplacian=laplacian
            )
            for size in (None, 4)
        )
        for a, b in zip(whole, parts, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_probe_costs_two_more_reverse_passes() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    for count in (0, 1, 3):
        problem = problem_of("flow_map", Probes(max(count, 1)))
        evaluate(problem, x, 0.4, velocity=True, laplacian=count > 0)
        assert problem.cost.backwards == 5 * (1 + 2 * count) and problem.cost.forwards == 10


@pytest.mark.parametrize("every", (1, 3))
def test_the_budget_of_reward_calls_is_what_was_planned(every: int) -> None:
    """A run with exactly its budget goes through; with one call less it is refused at the start."""

    def reward(x: Tensor, cond: Any = None) -> Tensor:
        return x[:, 0].detach().round()

    def run(limit: int | None) -> fmtt.TiltResult:
        return fmtt.tilt(
            FLOW, reward, num_particles=6, num_steps=8, weights="path", gradient="zeroth", num_probes=2,
            gradient_every=every, max_reward_calls=limit, dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    calls = run(None).cost.reward_calls
    assert run(calls).cost.reward_calls == calls and run(calls).history.guidance_ratio.any()
    with pytest.raises(fmtt.UserError, match=f"{calls} reward calls"):
        run(calls - 1)


def test_recomputed_forwards_are_counted() -> None:
    options = {"num_particles": 6, "num_steps": 5, "lookahead_steps": 3, "dtype": torch.float64}
    plain, again = (
        fmtt.tilt(FLOW, quadratic, checkpoint=c, generator=torch.Generator().manual_seed(0), **options).cost
        for c in (False, True)
    )
    assert again.forwards - plain.forwards == plain.backwards and again.backwards == plain.backwards
