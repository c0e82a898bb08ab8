"""Look-aheads: the identity at t = 1, exact times per sample, honest prices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.flow.oracle import Gaussian
from fmtt.models.config import NETWORKS
from fmtt.steering import lookahead as lookaheads
from fmtt.types import Time

NAMES = [
    ("none", 1),
    ("denoiser", 1),
    ("euler", 1),
    ("euler", 3),
    ("flow_map", 1),
    ("flow_map", 3),
    ("ode", 1),
]


@pytest.fixture(params=[Linear, Trigonometric], ids=["linear", "trigonometric"])
def flow(request: Any) -> Gaussian:
    return Gaussian([0.4, -0.3], [0.5, 1.7], request.param())


def look(flow: Gaussian, name: str, steps: int, x: Tensor, t: Tensor) -> Tensor:
    ahead = lookaheads.build(name, steps, flow, flow.velocity, tol=1e-9)
    return ahead(x, t, None, flow.velocity(x, t) if ahead.uses_velocity else None)


@pytest.mark.parametrize(("name", "steps"), NAMES)
def test_identity_at_the_end(flow: Gaussian, name: str, steps: int) -> None:
    x = torch.randn(7, 2, dtype=torch.float64)
    torch.testing.assert_close(look(flow, name, steps, x, torch.ones(7).double()), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "steps"), NAMES)
def test_half_precision_stays_half_precision(name: str, steps: int) -> None:
    torch.manual_seed(0)
    network = NETWORKS["mlp"]((2,), width=8, depth=1).to(torch.bfloat16)
    flow_map = NeuralFlowMap(network, Linear(), (2,))
    options = {"num_particles": 4, "num_steps": 3, "weights": "path"}
    options |= {"lookahead": name, "lookahead_steps": steps, "lookahead_tol": 0.1}
    result = fmtt.tilt(flow_map, lambda x, cond: -x.square().sum(1), **options)  # pyright: ignore
    assert result.samples.dtype == torch.bfloat16 and result.samples.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("denoiser", {"steps": 3}),
        ("none", {"steps": 2}),
        ("ode", {"steps": 2}),
        ("denoiser", {"checkpoint": True}),
    ],
)
def test_an_argument_that_would_do_nothing_is_refused(
    flow: Gaussian, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="is of no use to lookahead="):
        lookaheads.choose(
            name, flow_map=flow, other_map=None, velocity=flow.velocity, **{"steps": 1, **options}
        )


@pytest.mark.parametrize(("name", "steps"), NAMES)
def test_every_sample_has_its_own_time(flow: Gaussian, name: str, steps: int) -> None:
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    alone = [look(flow, name, steps, x[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(look(flow, name, steps, x, t), torch.cat(alone))


@pytest.mark.parametrize(("name", "steps"), NAMES)
def test_derivative_in_time_includes_the_grid(flow: Gaussian, name: str, steps: int) -> None:
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64) * 0.9
    t.requires_grad_()
    value = look(flow, name, steps, x, t).sum()
    if name == "none":
        assert not value.requires_grad
        return
    (found,) = torch.autograd.grad(value, t)
    h = 1e-5
    with torch.no_grad():
        ends = [look(flow, name, steps, x, t + sign * h).sum(1) for sign in (1, -1)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), atol=1e-7, rtol=1e-6)


def test_the_ode_is_the_exact_map(flow: Gaussian) -> None:
    """Value and both derivatives, so its Eulerian residual is of the tolerance's order."""
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64) * 0.9
    torch.testing.assert_close(look(flow, "ode", 1, x, t), flow(x, t, 1.0), atol=1e-7, rtol=0)
    x.requires_grad_()
    t.requires_grad_()
    value = torch.sin(look(flow, "ode", 1, x, t)).sum()
    found = torch.autograd.grad(value, (x, t))
    expected = torch.autograd.grad(torch.sin(flow(x, t, 1.0)).sum(), (x, t))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    b = flow.velocity(x, t)
    torch.testing.assert_close(found[1] + (b * found[0]).sum(1), torch.zeros(5).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("euler", 3), ("flow_map", 3), ("ode", 1)])
def test_checkpointing_changes_no_bit(flow: Gaussian, name: str, steps: int) -> None:
    """Value, first and second derivatives, with fewer tensors kept, and as many forwards again."""
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64) * 0.9
    results, kept = [], []
    for checkpoint in (False, True):
        ahead = lookaheads.build(name, steps, flow, flow.velocity, checkpoint=checkpoint)
        x_, t_ = x.clone().requires_grad_(), t.clone().requires_grad_()
        sizes: list[int] = []

        def pack(value: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(value.numel())
            return value

        b = flow.velocity(x_, t_) if ahead.uses_velocity else None
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            value = torch.sin(ahead(x_, t_, None, b))
        kept.append(sum(sizes))
        first = torch.autograd.grad(value.sum(), (x_, t_), create_graph=True)
        second = torch.autograd.grad(first[0].sum(), (x_, t_))
        results.append((value, *first, *second))
        assert isinstance(ahead, lookaheads.Recomputing)
        assert ahead.recomputed == (ahead.passes if checkpoint else 0)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and kept[1] < kept[0]


@pytest.mark.parametrize(("steps"), (1, 2, 5))
def test_steps_of_an_exact_map_agree(flow: Gaussian, steps: int) -> None:
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(look(flow, "flow_map", steps, x, t), flow(x, t, 1.0))


def test_euler_converges_to_the_map(flow: Gaussian) -> None:
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(look(flow, "euler", 2000, x, t), flow(x, t, 1.0), atol=2e-3, rtol=0)


def test_a_denoiser_is_one_euler_step_on_the_linear_path() -> None:
    flow = Gaussian([0.4, -0.3], [0.5, 1.7])
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(look(flow, "denoiser", 1, x, t), look(flow, "euler", 1, x, t))
    torch.testing.assert_close(look(flow, "denoiser", 1, x, t), flow.denoiser(x, t))


@pytest.mark.parametrize(("name", "steps"), NAMES)
def test_declared_passes_are_those_made(name: str, steps: int) -> None:
    flow = Gaussian([0.4])
    calls = 0

    class Counted:
        interpolant = flow.interpolant

        def __call__(self, x: Tensor, s: Time, t: Time, cond: Any = None) -> Tensor:
            nonlocal calls
            calls += 1
            return flow(x, s, t)

        def velocity(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
            nonlocal calls
            calls += 1
            return flow.velocity(x, t)

    counted = Counted()
    ahead = lookaheads.build(name, steps, counted, counted.velocity)
    x, t = torch.randn(3, 1, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)
    ahead(x, t, None, flow.velocity(x, t) if ahead.uses_velocity else None)
    assert calls == ahead.passes


def test_unknown_names_and_steps_are_refused() -> None:
    flow = Gaussian([0.4])
    with pytest.raises(UserError, match="flow_map, denoiser, euler, ode, none"):
        lookaheads.build("map", 1, flow, flow.velocity)
    with pytest.raises(UserError, match="lookahead_steps"):
        lookaheads.build("flow_map", 0, flow, flow.velocity)
