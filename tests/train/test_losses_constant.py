"""A derivative that is held constant may come from a pass of its own: loss and gradient stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmtt.flow.derivative import FiniteDifference, ForwardMode, Observed, using
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.dit import DiT
from train.losses import OBJECTIVES, Times
from train.losses.base import sample_path
from train.losses.constant import repeats_blocks, with_constant

HELD = ("lmd", "emd", "mean_flow", "consistency")
SHAPE = (1, 4, 4)


class Repeating(DiT):
    """A network that says of itself that it repeats its blocks."""

    gradient_checkpointing = True


def problem(generator: torch.Generator):
    """(student, its twin that repeats, teacher, path, times) in float64, two samples with t = s."""
    maps = []
    for kind, seed in ((DiT, 1), (Repeating, 1), (DiT, 2)):
        torch.manual_seed(seed)
        network = kind(SHAPE, patch=2, dim=8, depth=1, heads=2)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        maps.append(NeuralFlowMap(network, Linear(), SHAPE).double())
    x_0, x_1 = torch.randn(2, 6, *SHAPE, generator=generator, dtype=torch.float64)
    s, share = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    s = 0.8 * s
    t = torch.where(torch.arange(6) < 2, s, s + (0.95 - s) * share)
    return *maps, sample_path(Linear(), x_0, x_1, s), Times(s, (s + t) / 2, t)


@pytest.mark.parametrize("derivative", [ForwardMode(), FiniteDifference()], ids=lambda d: d.name)
@pytest.mark.parametrize("name", HELD)
def test_loss_and_gradient_are_those_of_one_pass(name, derivative, generator):
    plain, repeating, teacher, path, times = problem(generator)
    results = []
    for student in (plain, repeating):
        seen: list[Observed] = []
        with using(derivative, seen.append, share=0.7):
            out = OBJECTIVES[name](student, teacher.velocity, path, times)
        gradient = torch.autograd.grad(out.per_sample.mean(), list(student.parameters()))
        results.append(
            (out.per_sample.detach(), out.logs["tangent_norm"], seen[0].tangent.detach(), *gradient)
        )
        assert len(seen) == 1 and seen[0].tangent.requires_grad is (student is plain)
        assert not out.logs["tangent_norm"].requires_grad
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    assert results[0][1] > 1e-3, "a derivative that matters"


@pytest.mark.parametrize("name", ["lsd", "esd", "tvm"])
def test_a_gradient_through_the_derivative_still_goes_through_it(name, generator):
    plain, repeating, teacher, path, times = problem(generator)
    gradients = [
        torch.autograd.grad(
            OBJECTIVES[name](student, teacher.velocity, path, times).per_sample.mean(),
            list(student.parameters()),
        )
        for student in (plain, repeating)
    ]
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_the_pass_with_a_tangent_leaves_no_graph_where_blocks_are_repeated():
    weight = torch.ones(2, requires_grad=True)
    recorded: list[bool] = []

    def both() -> tuple[Tensor, Tensor]:
        recorded.append(torch.is_grad_enabled())
        return 2 * weight, 3 * weight

    for network, passes in (
        (DiT(SHAPE, patch=2, dim=8, depth=1, heads=2), 1),
        (Repeating(SHAPE, patch=2), 2),
    ):
        student = NeuralFlowMap(network, Linear(), SHAPE)
        calls = []
        value, derivative = with_constant(student, both, lambda calls=calls: calls.append(1) or 2 * weight)
        assert value.requires_grad and not derivative.requires_grad
        assert torch.equal(derivative, torch.full((2,), 3.0))
        assert repeats_blocks(student) is (passes == 2) and len(calls) == passes - 1
    assert recorded == [True, False]
