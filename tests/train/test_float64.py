"""The reference is float64 throughout, also for networks that go through float32 by their own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmtt.flow.derivative import ForwardMode
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from train.check_derivative import TOLERANCE, measure
from train.derivative_reference import Inputs, Reference
from train.float64 import Float64
from train.losses import OBJECTIVES, Times
from train.losses.base import sample_path


class Embedded(nn.Module):
    """A timestep embedding as diffusers has it: a thousand radians per unit of time, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4]))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        angle = 1000 * t.float()[:, None] + torch.zeros(2, dtype=torch.float32)
        return x + self.weight * torch.sin(angle).to(x.dtype)


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(3)
    x_0, x_1 = torch.randn(2, 4, 2, generator=generator)
    s, t = torch.rand(2, 4, generator=generator).sort(0).values
    path = sample_path(Linear(), x_0, x_1, s)
    student = NeuralFlowMap(Embedded(), Linear(), (2,))
    return Inputs(student, lambda x, t, cond=None: x.float(), path, Times(s, (s + t) / 2, t), None)


def test_a_right_derivative_agrees():
    agreement = measure(OBJECTIVES["lmd"], inputs(), ForwardMode())
    assert agreement.calls == 1 and agreement.error < 2e-4


def test_in_float32_the_reference_itself_would_be_wrong(monkeypatch: pytest.MonkeyPatch):
    """The companion: the same check without the mode refuses a right derivative."""
    monkeypatch.setattr(Reference, "__init__", _passing(Reference.__init__))
    assert measure(OBJECTIVES["lmd"], inputs(), ForwardMode()).error > 10 * TOLERANCE


def _passing(init: Any) -> Any:
    def made(self: Reference, *args: Any) -> None:
        init(self, *args)
        self.wide.passing = True

    return made


def test_what_asks_for_float32_gets_float64():
    mode, x = Float64(), torch.ones(2, dtype=torch.float64)
    with mode:
        made = (
            x.float(),
            x.to(torch.float32),
            x.to(dtype=torch.float32),
            torch.zeros(2, dtype=torch.float32),
        )
        assert {v.dtype for v in made} == {torch.float64}
        assert x.to(torch.bfloat16).dtype == torch.bfloat16
        with mode.off():
            assert x.float().dtype == torch.float32
        assert x.to(torch.complex64).dtype == torch.complex128
    assert x.float().dtype == torch.float32
