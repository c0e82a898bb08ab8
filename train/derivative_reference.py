"""What derivatives are checked against: fourth-order central differences of the objective in float64."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmtt.flow.derivative import FiniteDifference, Observed, using
from fmtt.types import Cond, FlowMap, VelocityField
from train.float64 import Float64
from train.losses.base import FlowMapLoss, PathSample, Times

DIRECTIONS = 4
"""Random directions in the space of weights along which gradients are compared."""
FILL = 0.05
"""Standard deviation of what stands in for weights that are zero."""
STEP = 2.0**-22
"""Of the differences: rounding is 1e-9 of the value, and truncation nothing even behind timestep embeddings,
which turn by a thousand radians per unit of time. What bounds it from above are kinks: at 2^-16 some of the
rectified units of SANA's attention cross zero within a step, and the difference mixes both slopes."""


class Inputs(NamedTuple):
    """What an objective is called with."""

    student: FlowMap
    teacher: VelocityField
    path: PathSample
    times: Times
    cond: Cond | None


@contextmanager
def filled(student: object) -> Iterator[None]:
    """Inside the block, parameters that are zero throughout have small random values."""
    parameters = list(student.parameters()) if isinstance(student, nn.Module) else []
    empty = [p for p in parameters if p.numel() > 0 and not bool(p.detach().any())]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in empty:
            p.copy_(FILL * torch.randn(p.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for p in empty:
                p.zero_()


class Reference:
    """The objective's derivatives from a float64 copy of the student, eager even where it is compiled."""

    def __init__(self, objective: FlowMapLoss, inputs: Inputs) -> None:
        self.objective, self.inputs, self.wide = objective, inputs, Float64()
        student = inputs.student
        self.student = copy.deepcopy(student).double() if isinstance(student, nn.Module) else student

    def teacher(self, x: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        """The teacher as it is: no objective differentiates it."""
        dtype = self.inputs.path.x_s.dtype
        with self.wide.off():
            time = t.to(self.inputs.times.s.dtype) if isinstance(t, Tensor) else t
            return self.inputs.teacher(x.to(dtype), time, _to(cond, dtype)).double()

    def derivatives(self) -> list[Observed]:
        """Every derivative that the objective takes, in order."""
        path = PathSample(*(v.double() for v in self.inputs.path))
        times = Times(*(v.double() for v in self.inputs.times))
        seen: list[Observed] = []
        device = path.x_s.device.type
        with (
            torch.no_grad(),
            torch.autocast(device, enabled=False),
            # Where dynamo was never imported nothing is compiled, and importing it takes seconds.
            torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext(),
            using(FiniteDifference(order=4, step=STEP), seen.append),
            self.wide,
        ):
            self.objective(self.student, self.teacher, path, times, _to(self.inputs.cond, torch.float64))
        return seen

    def gradient_error(self, found: list[Observed], used: list[bool]) -> float:
        """Relative error of the weights' gradient of a random projection of the derivatives ``used``."""
        assert isinstance(self.inputs.student, nn.Module) and isinstance(self.student, nn.Module)
        generator = torch.Generator().manual_seed(1)
        probes = [torch.randn(o.tangent.shape, generator=generator).to(o.tangent) for o in found]
        chosen = [(p, o.tangent) for p, o, use in zip(probes, found, used, strict=True) if use]
        both = zip(self.inputs.student.parameters(), self.student.parameters(), strict=True)
        pairs = [(own, wide) for own, wide in both if own.requires_grad]
        total = torch.stack([(p * tangent).sum() for p, tangent in chosen]).sum()
        gradients = torch.autograd.grad(total, [own for own, _ in pairs], allow_unused=True)

        def projection() -> float:
            values = zip(probes, self.derivatives(), used, strict=True)
            return sum(float((p.double() * o.tangent).sum()) for p, o, use in values if use)

        size = sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5
        errors = []
        for _ in range(DIRECTIONS):
            directions = [torch.randn(w.shape, generator=generator).to(w) for _, w in pairs]
            moved = zip(gradients, directions, strict=True)
            slope = sum(float((g.double() * d).sum()) for g, d in moved if g is not None)
            errors.append(slope - self._slope(projection, [w for _, w in pairs], directions))
        return (sum(e**2 for e in errors) / DIRECTIONS) ** 0.5 / max(size, 1e-30)

    @staticmethod
    @torch.no_grad()
    def _slope(
        projection: Callable[[], float], weights: list[nn.Parameter], directions: list[Tensor]
    ) -> float:
        step, values = 1e-5, []
        for sign in (1, -2):
            for w, d in zip(weights, directions, strict=True):
                w.add_(sign * step * d)
            values.append(projection())
        for w, d in zip(weights, directions, strict=True):
            w.add_(step * d)
        return (values[0] - values[1]) / (2 * step)


def _to(cond: Cond | None, dtype: torch.dtype) -> Cond | None:
    if cond is None:
        return None
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in cond.items()}
