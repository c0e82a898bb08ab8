"""The start-up check: right networks pass, wrong derivatives do not, every refusal is one line."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fmtt.errors import UserError
from fmtt.flow.calculus import average_velocity_eulerian
from fmtt.flow.derivative import BACKENDS, FiniteDifference, FlashForwardMode, ForwardMode, Observed
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.flow.oracle import Gaussian
from fmtt.models.dit import DiT
from fmtt.models.mlp import MLP
from train.check_derivative import check, measure, refusal
from train.derivative_reference import Inputs
from train.losses import OBJECTIVES, Times
from train.losses.base import sample_path
from train.tangents import Differentiated, TangentNorms, few, first_that_agrees
from train.weighting import Ramp

TAKES_DERIVATIVES = ("lsd", "lmd", "esd", "emd", "mean_flow", "consistency", "tvm")
THROUGH = ("lsd", "esd", "tvm")


class Twisted(nn.Module):
    """A small network with an operation of the test's own in its middle."""

    def __init__(self, operation: Any, dim: int = 2) -> None:
        super().__init__()
        self.inner, self.operation = MLP((dim,), width=16, depth=1), operation
        with torch.no_grad():
            for p in self.inner.parameters():
                p.add_(0.3 * torch.randn_like(p))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.operation(self.inner(x, s, t, cond))


class Custom(torch.autograd.Function):
    """sin with a tangent ``slope`` times the right one, and a value that no other rule can differentiate."""

    generate_vmap_rule = False
    slope: ClassVar[float] = 1.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore
        return torch.sin(x.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # type: ignore
        ctx.save_for_forward(*inputs)
        ctx.save_for_backward(*inputs)
        ctx.slope = Custom.slope

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore
        return ctx.slope * torch.cos(ctx.saved_tensors[0]) * tangent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore
        return torch.cos(ctx.saved_tensors[0]) * gradient


class Twist(nn.Module):
    """:class:`Custom` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return Custom.apply(x)  # type: ignore


def flow_map(network: nn.Module, shape: tuple[int, ...] = (2,)) -> NeuralFlowMap:
    return NeuralFlowMap(network, Linear(), shape)


def inputs(student: Any, shape: tuple[int, ...] = (2,), n: int = 4) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    x_0, x_1 = torch.randn(2, n, *shape, generator=generator)
    pull = torch.randn(shape, generator=generator)
    s = 0.8 * torch.rand(n, generator=generator)
    t = s + (1 - s) * torch.rand(n, generator=generator)
    path = sample_path(Linear(), x_0, x_1, s)
    return Inputs(student, lambda x, t, cond=None: torch.tanh(x + pull), path, Times(s, (s + t) / 2, t), None)


def refused(student: Any, backend: Any = None, objective: str = "lmd") -> str:
    with pytest.raises(UserError) as caught:
        check(OBJECTIVES[objective], inputs(student), backend or ForwardMode())
    message = str(caught.value)
    assert "\n" not in message and message.startswith("derivative: ")
    return message


@pytest.mark.parametrize("backend", [ForwardMode(), FiniteDifference()], ids=lambda b: b.name)
@pytest.mark.parametrize("name", TAKES_DERIVATIVES)
def test_backends_agree_in_every_objective(name, backend):
    student = flow_map(MLP((2,), width=16, depth=1))
    agreement = check(OBJECTIVES[name], inputs(student), backend)
    assert agreement.good and agreement.calls >= 1
    assert (agreement.gradient_error is not None) == (name in THROUGH)
    assert agreement.error < (1e-5 if backend.name == "jvp" else 1e-3)


@pytest.mark.parametrize("backend", [ForwardMode(), FiniteDifference()], ids=lambda b: b.name)
def test_backends_agree_on_a_fresh_transformer(backend):
    """Its output layer is zero; the check looks behind it and leaves every weight as it was."""
    shape = (2, 4, 4)
    student = flow_map(DiT(shape, patch=2, dim=16, depth=2, heads=2), shape)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    for name in ("lsd", "emd"):
        assert check(OBJECTIVES[name], inputs(student, shape), backend).good
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert not any(p.grad is not None for p in student.parameters())


def test_nothing_is_checked_where_nothing_is_differentiated():
    student = flow_map(Twisted(Custom.apply))
    assert measure(OBJECTIVES["psd_m"], inputs(student), ForwardMode()).calls == 0
    gaussian = Gaussian([0.5, -1.0], [[0.8, 0.3], [0.3, 0.4]])
    assert check(OBJECTIVES["lmd"], inputs(gaussian), ForwardMode()).good


@pytest.mark.parametrize("slope", [0.0, 0.9])
def test_a_wrong_tangent_is_caught(slope, monkeypatch):
    student = flow_map(Twisted(Custom.apply))
    assert check(OBJECTIVES["lmd"], inputs(student), ForwardMode()).good
    monkeypatch.setattr(Custom, "slope", slope)
    assert "wrong forward-mode derivative, or a compiler" in refused(student)
    assert check(OBJECTIVES["lmd"], inputs(student), FiniteDifference()).good
    derivative, agreement = first_that_agrees(OBJECTIVES["lmd"], inputs(student))
    assert derivative.name == "finite_difference" and agreement.good


def test_a_wrong_tangent_behind_a_zero_layer_is_caught(monkeypatch):
    monkeypatch.setattr(Custom, "slope", 0.5)
    last = nn.Linear(2, 2)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    network = Twisted(nn.Sequential(Twist(), last))
    assert "disagrees" in refused(flow_map(network), objective="emd")


def test_layer_norm_is_wrong_only_through_the_tangent():
    student = flow_map(Twisted(nn.LayerNorm(8), 8), (8,))
    probe = inputs(student, (8,))
    assert check(OBJECTIVES["lmd"], probe, ForwardMode()).good
    with pytest.raises(UserError, match="layer norm has a wrong gradient there: use nn.RMSNorm, or lmd") as e:
        check(OBJECTIVES["lsd"], probe, ForwardMode())
    assert "\n" not in str(e.value)
    rms = flow_map(Twisted(nn.RMSNorm(8), 8), (8,))
    assert check(OBJECTIVES["lsd"], inputs(rms, (8,)), ForwardMode()).good


class Checkpointed(nn.Module):
    """A layer whose activations are computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.reentrant = nn.Linear(2, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)  # type: ignore


def test_reentrant_checkpointing_is_refused():
    message = refused(flow_map(Twisted(Checkpointed(True))))
    assert "reentrant activation checkpointing: use use_reentrant=False" in message
    assert check(OBJECTIVES["lmd"], inputs(flow_map(Twisted(Checkpointed(False)))), ForwardMode()).good


def test_dropout_and_compiled_networks_are_refused():
    dropped = flow_map(Twisted(nn.Dropout(0.1)))
    assert "dropout (network.operation) makes differ" in refused(dropped, FiniteDifference())
    student = flow_map(Twisted(nn.GroupNorm(1, 2)))
    assert refusal(student, ForwardMode()) is None
    student.network.compile(backend="eager")
    assert "compiled network with an affine norm (network.operation)" in refused(student)
    assert "which torch.compile ignores" in refused(student, FlashForwardMode())
    assert refusal(student, FiniteDifference()) is None


@pytest.mark.slow
def test_compiling_across_a_custom_jvp_is_caught():
    """Dynamo differentiates the function's forward instead of calling its jvp."""

    class Compiled:
        name: ClassVar[str] = "jvp"

        def __call__(self, f: Any, primals: Any, tangents: Any) -> Any:
            with torch.no_grad():
                whole = torch.compile(lambda p, v: torch.func.jvp(f, p, v), backend="aot_eager")
                return whole(primals, tangents)

    student = flow_map(Twisted(Custom.apply))
    assert "or a compiler ignores its own: use finite_difference" in refused(student, Compiled())
    assert check(OBJECTIVES["lmd"], inputs(flow_map(Twisted(torch.sin))), Compiled()).good


def test_what_cannot_run_is_refused_in_one_line():
    assert "flash_jvp needs the package" in refused(flow_map(Twisted(torch.sin)), FlashForwardMode())

    def broken(x: Tensor) -> Tensor:
        if forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError("no rule\nsecond line")
        return x

    assert "fails on this network (RuntimeError: no rule): use finite" in refused(flow_map(Twisted(broken)))


def test_the_wrapped_objective_checks_once_damps_and_logs(capsys):
    student, steps = flow_map(MLP((2,), width=16, depth=1)), [0]
    for name in ("final", "second_time.out"):
        nn.init.normal_(student.network.get_parameter(f"{name}.weight"))
    probe = inputs(student, n=64)
    wrapped = Differentiated(OBJECTIVES["emd"], "jvp", Ramp(10), lambda: steps[0])
    first = wrapped(*probe)
    assert "derivative: jvp agrees with float64" in capsys.readouterr().out
    steps[0] = 5
    half = wrapped(*probe)
    assert capsys.readouterr().out == ""
    for out, share in ((first, 0.0), (half, 0.495)):
        s, _, t = probe.times
        velocity = probe.teacher(probe.path.x_s, s)
        u, tangent = average_velocity_eulerian(student, probe.path.x_s, s, t, velocity)
        residual = u - velocity - share * (t - s)[:, None] * tangent
        torch.testing.assert_close(out.per_sample, residual.square().mean(1))
    assert float(half.logs["derivative/error"]) < 1e-5
    buckets = {name: v for name, v in half.logs.items() if name.startswith("tangent_norm/")}
    assert len(buckets) >= 8 and all(v > 0 for v in buckets.values())
    assert all(torch.equal(v, first.logs[name]) for name, v in buckets.items())  # before damping


def test_tangent_norms_are_means_over_parts():
    norms = TangentNorms()
    s, t = torch.tensor([0.1, 0.2, 0.6]), torch.tensor([0.9, 1.0, 0.7])
    tangent = torch.tensor([[1.0, 1.0], [3.0, 3.0], [0.5, 0.5]])
    norms(Observed(s, t, tangent, tangent))
    assert {k: float(v) for k, v in norms.logs().items()} == {
        "tangent_norm/s0_t0.75": 2.0,
        "tangent_norm/s0.5_t0.5": 0.5,
    }


@pytest.mark.parametrize("name", ["lsd", "psd_m"])
def test_a_ramp_needs_a_derivative_in_the_target(name):
    wrapped = Differentiated(OBJECTIVES[name], "jvp", Ramp(10), lambda: 0)
    with pytest.raises(UserError, match=r"^weighting.ramp_steps is for objectives .*: set it to 0$"):
        wrapped(*inputs(flow_map(MLP((2,), width=16, depth=1))))


def test_few_takes_samples_of_both_kinds():
    probe = inputs(flow_map(MLP((2,), width=8, depth=0)), n=12)
    t = torch.where(torch.arange(12) < 9, probe.times.s, probe.times.t)
    taken = few(probe._replace(times=Times(probe.times.s, probe.times.s, t))).times
    assert ((taken.s < taken.t).tolist()) == [True, True, True, False]


def test_backends_in_a_run(toy):
    from train.build import build_module

    module = build_module(toy("derivative=auto", distill="lmd"), "distill", (2,))
    module.objective(*inputs(module.student))
    assert module.objective.derivative is BACKENDS["jvp"]
    with pytest.raises(UserError, match="^derivative: 'jpv' is not one of .*did you mean 'jvp'"):
        build_module(toy("derivative=jpv", distill="lmd"), "distill", (2,))
