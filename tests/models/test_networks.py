"""What every network that carries a flow map must do; a new entry of NETWORKS needs one of SMALL.

Derivatives are compared with finite differences in float64: fused layer norms have a correct tangent
whose backward is silently wrong, and only this shows it.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmtt.flow.calculus import eulerian_derivative, jvp, partial_t
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.models.checkpoint import NETWORKS
from fmtt.types import Cond

SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "dit": ((2, 4, 4), {"patch": 2, "dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}),
    "anchored_dit": ((2, 4, 4), {"patch": 2, "dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}),
    "mlp": ((2,), {"width": 16, "depth": 2}),
}
"""By name: the shape of the data and the arguments of a small network; test_checkpoint.py takes it too."""
pytestmark = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, *, untrained: bool = False, **extra: int) -> NeuralFlowMap:
    """A small float64 map with random weights; ``untrained``: its second time is as initialised."""
    shape, args = SMALL[name]
    network = NETWORKS[name](shape, **args, **extra).double().requires_grad_(True)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if not (untrained and "second_time.out" in key):
                weight.add_(0.3 * torch.randn_like(weight))
    if untrained and isinstance(network, AnchoredDiT):
        network.own.load_state_dict(network.anchor.state_dict())
    return NeuralFlowMap(network, Linear(), shape, bidirectional=True)


def draw(name: str, n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(n, *SMALL[name][0], dtype=torch.float64)
    s = 0.1 + 0.8 * torch.rand(n, dtype=torch.float64)
    return x, s, s + (0.95 - s) * torch.rand(n, dtype=torch.float64)


def test_untrained_student_equals_its_teacher(name: str):
    """u_{s,t} = u_{s,s}: the second time has no effect until it is trained, and then it has."""
    x, s, t = draw(name)
    student = build(name, untrained=True)
    torch.testing.assert_close(student.average_velocity(x, s, t), student.velocity(x, s), rtol=0, atol=1e-13)
    trained = build(name)
    assert not torch.allclose(trained.average_velocity(x, s, t), trained.velocity(x, s))


def test_second_time_receives_a_gradient_from_the_start(name: str):
    x, s, t = draw(name)
    student = build(name, untrained=True)
    student(x, s, t).square().sum().backward()
    prefix = "own." if name == "anchored_dit" else ""
    gradient = student.network.get_parameter(prefix + "second_time.out.weight").grad
    assert gradient is not None and gradient.abs().max() > 0


def test_is_the_identity_on_the_diagonal(name: str):
    x, s, _ = draw(name)
    assert torch.equal(build(name)(x, s, s), x)


def test_each_sample_has_its_own_times(name: str):
    flow_map = build(name)
    x, s, t = draw(name)
    alone = torch.cat([flow_map(x[i : i + 1], float(s[i]), float(t[i])) for i in range(len(x))])
    torch.testing.assert_close(flow_map(x, s, t), alone, rtol=0, atol=1e-12)
    assert (flow_map(x, s, t) - flow_map(x, s[0], t[0])).abs()[1:].amax() > 1e-3


def test_jvp_matches_finite_differences(name: str):
    flow_map, h = build(name), 1e-5
    x, s, t = draw(name)
    value, tangent = partial_t(flow_map, x, s, t)
    torch.testing.assert_close(value, flow_map(x, s, t), rtol=0, atol=1e-12)
    difference = (flow_map(x, s, t + h) - flow_map(x, s, t - h)) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-6)
    b = flow_map.velocity(x, s)
    _, residual = eulerian_derivative(flow_map, x, s, t)
    difference = (flow_map(x + h * b, s + h, t) - flow_map(x - h * b, s - h, t)) / (2 * h)
    torch.testing.assert_close(residual, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("identity", ["lagrangian", "eulerian"])
def test_gradient_through_the_tangent_matches_finite_differences(name: str, identity: str):
    """Along a random direction in the space of all weights, and for each weight tensor alone."""
    flow_map, h = build(name), 1e-5
    x, s, t = draw(name)
    velocity, probe = torch.randn_like(x), torch.randn_like(x)

    def loss() -> Tensor:
        if identity == "lagrangian":
            return (partial_t(flow_map, x, s, t)[1] * probe).sum()
        return (eulerian_derivative(flow_map, x, s, t, velocity=velocity)[1] * probe).sum()

    weights = dict(flow_map.network.named_parameters())
    gradients = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)

    @torch.no_grad()
    def shifted(weight: nn.Parameter, direction: Tensor, size: float) -> float:
        weight.add_(size * direction)
        value = float(loss())
        weight.sub_(size * direction)
        return value

    seen = 0.0
    for (key, weight), gradient in zip(weights.items(), gradients, strict=True):
        direction = torch.randn_like(weight)
        difference = (shifted(weight, direction, h) - shifted(weight, direction, -h)) / (2 * h)
        expected = 0.0 if gradient is None else float((gradient * direction).sum())
        assert abs(difference - expected) < 1e-5 * (1 + abs(difference)), key
        seen = max(seen, abs(difference))
    assert seen > 1e-2


def test_gradient_of_the_input_matches_finite_differences(name: str):
    flow_map = build(name)
    x, s, t = (v.requires_grad_() for v in draw(name, 2))
    assert torch.autograd.gradcheck(flow_map, (x, s, t))


def test_runs_under_bfloat16_autocast(name: str):
    flow_map = build(name).float()
    x, s, t = (v.float() for v in draw(name))
    exact = flow_map(x, s, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, tangent = partial_t(flow_map, x, s, t)
        velocity = flow_map.velocity(x, s)
    assert value.dtype == velocity.dtype == torch.float32 and tangent.isfinite().all()
    assert (value - exact).norm() < 0.03 * exact.norm()
    value.square().sum().backward()


def test_half_precision_weights(name: str):
    flow_map = build(name)
    x, s, t = draw(name)
    exact, narrow = flow_map(x, s, t), flow_map.bfloat16()(x.bfloat16(), s, t)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.double() - exact).norm() < 0.05 * exact.norm()


def test_class_labels_are_required_and_used(name: str):
    if "num_classes" not in inspect.signature(NETWORKS[name]).parameters:  # it is for data without labels
        with pytest.raises(TypeError, match="num_classes"):
            build(name, num_classes=3)
        return
    flow_map = build(name, num_classes=3)
    x, s, t = draw(name, 4)

    def at(label: int) -> Cond:
        return {"label": torch.full((4,), label)}

    assert not torch.allclose(flow_map(x, s, t, at(0)), flow_map(x, s, t, at(3)))
    with pytest.raises(ValueError, match="class-conditional"):
        flow_map(x, s, t)
    _, tangent = jvp(lambda t_: flow_map(x, s, t_, at(1)), (t,), (torch.ones_like(t),))
    assert tangent.isfinite().all()


def test_has_no_buffers(name: str):
    """Exports are built without storage and filled from the file: what it lacks would stay empty."""
    assert not list(build(name).network.buffers())
