"""Derivative backends against each other, against closed forms, and their error orders."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fmtt.errors import UserError
from fmtt.flow.calculus import average_velocity, average_velocity_eulerian, eulerian_derivative, partial_t
from fmtt.flow.derivative import (
    BACKENDS,
    DERIVATIVES,
    FiniteDifference,
    FlashForwardMode,
    ForwardMode,
    Observed,
    using,
)
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.flow.oracle import Gaussian
from fmtt.models.dit import DiT
from fmtt.models.mlp import MLP


def build(kind: str) -> NeuralFlowMap:
    """A float32 map that goes forward only, with random weights."""
    if kind == "mlp":
        shape, network = (2,), MLP((2,), width=32, depth=2)
    else:
        shape, network = (2, 4, 4), DiT((2, 4, 4), patch=2, dim=32, depth=2, heads=2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return NeuralFlowMap(network, Linear(), shape)


def derivatives(flow_map: NeuralFlowMap, backend, dtype: torch.dtype) -> list[Tensor]:
    """Of every function of calculus, at times that include s = t, s = 0 and t = 1."""
    generator = torch.Generator().manual_seed(5)
    x, v = torch.randn(2, 12, *flow_map.data_shape, generator=generator).to(dtype)
    s = torch.rand(12, generator=generator).to(dtype)
    t = s + (1 - s) * torch.rand(12, generator=generator).to(dtype)
    s[0], t[1], t[2] = 0, 1, s[2]
    with using(backend):
        return [
            partial_t(flow_map, x, s, t)[1],
            eulerian_derivative(flow_map, x, s, t, velocity=v)[1],
            average_velocity(flow_map, x, s, t, derivative=True)[1],
            average_velocity_eulerian(flow_map, x, s, t, v)[1],
        ]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["mlp", "dit"])
@torch.no_grad()
def test_backends_agree_on_networks(kind):
    """1e-5 for forward mode and 5e-4 for differences in float32; 1e-7 and below in float64."""
    flow_map = build(kind)
    wide = copy.deepcopy(flow_map).double()
    exact = derivatives(wide, ForwardMode(), torch.float64)
    for backend, dtype, tolerance in (
        (ForwardMode(), torch.float32, 1e-5),
        (FiniteDifference(), torch.float32, 5e-4),
        (FiniteDifference(), torch.float64, 1e-7),
        (FiniteDifference(order=4), torch.float64, 1e-8),
    ):
        found = derivatives(flow_map if dtype == torch.float32 else wide, backend, dtype)
        assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < tolerance
    assert min(float(d.abs().max()) for d in exact) > 0.01


def test_a_map_can_be_copied_after_a_derivative():
    flow_map = build("mlp")
    x, s, t = torch.randn(3, 2), torch.full((3,), 0.2), torch.full((3,), 0.7)
    expected = partial_t(flow_map, x, s, t)[0]
    assert torch.equal(copy.deepcopy(flow_map)(x, s, t), expected)


@pytest.mark.parametrize("order", [2, 4])
def test_error_order(order):
    """Halving the step divides the error by 2^order; the automatic step is near the best of any."""

    def f(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * math.pi * t[:, None] + x)

    primals = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(20, 2), torch.linspace(0, 1, 20).double()
    tangents = torch.ones(20, 2, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    exact = ForwardMode()(f, primals, tangents)[1]

    def error(step: float | None, dtype: torch.dtype = torch.float64) -> float:
        narrow = [tuple(v.to(dtype) for v in group) for group in (primals, tangents)]
        return relative(FiniteDifference(order, step)(f, *narrow)[1], exact)  # type: ignore

    assert error(2**-4) / error(2**-5) == pytest.approx(2**order, rel=0.1)
    for dtype in (torch.float32, torch.float64):
        best = min(error(2.0**-k, dtype) for k in range(2, 24))
        assert error(None, dtype) < 8 * best
    assert error(None) < {2: 1e-9, 4: 1e-10}[order] and error(None, torch.float32) < 2e-4


def test_a_fast_direction_gets_a_small_step_of_its_own():
    """Samples do not share steps, and a velocity a hundred times larger moves x no further."""
    x, s = torch.ones(3, 4), torch.zeros(3)
    v = torch.stack([torch.zeros(4), torch.ones(4), torch.full((4,), 100.0)])
    h = FiniteDifference().steps((x, s), (v, torch.ones(3)))
    assert h.tolist() == pytest.approx([2**-10, 2**-10, 2**-10 / 100])
    assert FiniteDifference(step=0.5).steps((s,), (torch.ones(3),)).tolist() == [0.5] * 3


@torch.no_grad()
def test_differences_are_taken_in_full_precision_under_autocast():
    flow_map = build("mlp")
    expected = derivatives(copy.deepcopy(flow_map).double(), ForwardMode(), torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = derivatives(flow_map, FiniteDifference(), torch.float32)
    assert max(relative(a, b) for a, b in zip(found, expected, strict=True)) < 5e-4
    with pytest.raises(UserError, match="^derivative: finite_difference needs float32, the values are bf"):
        derivatives(flow_map.bfloat16(), FiniteDifference(), torch.bfloat16)


def test_gradients_go_through_differences():
    gradients = []
    for backend in (ForwardMode(), FiniteDifference()):
        torch.manual_seed(0)
        flow_map = build("mlp").double()
        derivatives(flow_map, backend, torch.float64)[0].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in flow_map.parameters() if p.grad is not None]))
    assert relative(gradients[1], gradients[0]) < 1e-7


def test_exact_identities_under_differences():
    flow_map = Gaussian([0.5, -1.0], [[1.0, 0.4], [0.4, 0.5]])
    x, s = torch.randn(64, 2, dtype=torch.float64), 0.1 + 0.4 * torch.rand(64, dtype=torch.float64)
    with using(FiniteDifference(order=4)):
        end, derivative = partial_t(flow_map, x, s, s + 0.3)
        assert (derivative - flow_map.velocity(end, s + 0.3)).abs().max() < 1e-8
        assert eulerian_derivative(flow_map, x, s, s + 0.3)[1].abs().max() < 1e-8


def test_the_choice_holds_for_its_block_and_observers_see_what_is_not_damped():
    flow_map, seen = build("mlp"), list[Observed]()
    plain = derivatives(flow_map, ForwardMode(), torch.float32)
    x, s = torch.randn(4, 2), torch.rand(4)
    with using(ForwardMode(), seen.append, share=0.25):
        damped = partial_t(flow_map, x, s, torch.ones(4))[1]
    (observed,) = seen
    assert torch.equal(0.25 * observed.tangent, damped) and torch.equal(observed.s, s)
    with pytest.raises(RuntimeError), using(FiniteDifference()):
        raise RuntimeError
    again = derivatives(flow_map, ForwardMode(), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert set(DERIVATIVES) == {*BACKENDS, "auto"}
    assert all(backend.name == name for name, backend in BACKENDS.items())


class Kernel:
    """Stands in for the Triton kernel: attention written out, on dual tensors that all have tangents."""

    calls = 0

    @classmethod
    def fwd_dual(cls, q, k, v, *, attn_mask=None, causal=False, sm_scale=None):
        assert all(forward_ad.unpack_dual(z).tangent is not None for z in (q, k, v))
        cls.calls += 1
        return (q @ k.transpose(-2, -1) * (sm_scale or q.shape[-1] ** -0.5)).softmax(-1) @ v


def test_flash_sends_attention_to_the_kernel():
    q, context, v = torch.randn(3, 2, 2, 8, 4, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        still = F.scaled_dot_product_attention(context, context, context)
        return F.scaled_dot_product_attention(x, context, x * still)

    expected = ForwardMode()(f, (q,), (v,))
    found = FlashForwardMode().with_kernel(Kernel, f, (q,), (v,))
    assert Kernel.calls == 1  # what does not move stays with torch
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)

    def masked(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, torch.zeros(8, 8, dtype=torch.float64))

    with pytest.raises(UserError, match="takes no attention dropout, grouped queries or additive masks"):
        FlashForwardMode().with_kernel(Kernel, masked, (q,), (v,))


def test_flash_says_what_it_lacks(monkeypatch):
    x = torch.randn(2, 3)
    with pytest.raises(UserError, match=r"^derivative: flash_jvp needs the package jvp_flash_attention"):
        FlashForwardMode()(torch.sin, (x,), (x,))
    monkeypatch.setitem(__import__("sys").modules, "jvp_flash_attention", SimpleNamespace())
    module = SimpleNamespace(JVPAttn=Kernel)
    monkeypatch.setitem(__import__("sys").modules, "jvp_flash_attention.jvp_attention", module)
    with pytest.raises(
        UserError, match="^derivative: flash_jvp runs on CUDA, the values are on cpu: use jvp"
    ):
        FlashForwardMode()(torch.sin, (x,), (x,))
