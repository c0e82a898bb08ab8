"""An objective whose derivatives are taken as configured: checked at the start, damped, and logged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.flow.derivative import BACKENDS, Derivative, Observed, using
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, VelocityField
from train.check_derivative import Agreement, check, measure, refusal
from train.derivative_reference import Inputs
from train.losses.base import FlowMapLoss, LossOutput, PathSample, Times
from train.strategy import is_sharded
from train.weighting import Ramp

CHECKED_SAMPLES = 4
LARGEST = 1_000_000_000
"""Students with more parameters are not checked: the float64 copy would take 8 GB and more."""
PARTS = 4
"""Tangent norms are averaged over this many equal parts of [0, 1] for s, and as many for t."""


class Differentiated:
    """The objective ``objective``, called as any other.

    The first call checks the backend on a few of its samples. Every call logs ``derivative/error`` of that
    check and the tangents' root mean square by parts of (s, t), as ``tangent_norm/s0.25_t0.75``: lower
    edges, parts without a sample left out.

    Args:
        name: a key of fmtt.flow.derivative.DERIVATIVES.
        ramp: the factor of the derivative, for objectives that hold it constant in their target.
        step: the number of optimizer steps so far.
    """

    def __init__(self, objective: FlowMapLoss, name: str, ramp: Ramp, step: Callable[[], int]) -> None:
        self.objective, self.name, self.ramp, self.step = objective, name, ramp, step
        self.derivative: Derivative | None = None
        self.agreement: Agreement | None = None

    def __call__(
        self,
        student: FlowMap,
        teacher: VelocityField,
        path: PathSample,
        times: Times,
        cond: Cond | None = None,
    ) -> LossOutput:
        first = self.derivative is None
        if self.derivative is None:
            self.derivative = self.start(few(Inputs(student, teacher, path, times, cond)))
        norms = TangentNorms()
        with using(self.derivative, norms, share=self.ramp.at(self.step())):
            out = self.objective(student, teacher, path, times, cond)
        if first and norms.parts and (reason := unchecked(student)):
            if refused := refusal(student, self.derivative):
                raise UserError(refused)
            rank_zero_warn(f"derivative: {self.derivative.name} is not checked: {reason}")
        return LossOutput(out.per_sample, {**out.logs, **self._agreement_logs(), **norms.logs()})

    def start(self, inputs: Inputs) -> Derivative:
        """The backend to use, which agrees with a float64 reference on ``inputs``.

        Raises:
            UserError: where none does, or the ramp has nothing to act on.
        """
        chosen = BACKENDS["jvp" if self.name == "auto" else self.name]
        if unchecked(inputs.student):
            return chosen
        if self.name == "auto":
            chosen, self.agreement = first_that_agrees(self.objective, inputs)
        else:
            self.agreement = check(self.objective, inputs, chosen)
        if self.ramp.steps > 0 and (self.agreement.calls == 0 or self.agreement.gradient_error is not None):
            raise UserError(
                "weighting.ramp_steps is for objectives with a derivative in their target (emd, mean_flow, "
                "consistency, lmd), which this one has not: set it to 0"
            )
        if self.agreement.calls > 0:
            _say(f"derivative: {chosen.name} agrees with float64 finite differences: {self.agreement}")
        return chosen

    def _agreement_logs(self) -> dict[str, Tensor]:
        if self.agreement is None or self.agreement.calls == 0:
            return {}
        logs = {"derivative/error": torch.tensor(self.agreement.error)}
        if self.agreement.gradient_error is not None:
            logs["derivative/gradient_error"] = torch.tensor(self.agreement.gradient_error)
        return logs


def first_that_agrees(objective: FlowMapLoss, inputs: Inputs) -> tuple[Derivative, Agreement]:
    """The quickest backend that agrees with the reference, and how well.

    Raises:
        UserError: where none does.
    """
    reasons = []
    for name, derivative in BACKENDS.items():
        if name == "flash_jvp" and inputs.path.x_s.device.type != "cuda":
            continue
        try:
            agreement = measure(objective, inputs, derivative)
        except UserError as error:
            reasons.append(f"{name} ({error})")
            continue
        if agreement.good:
            return derivative, agreement
        reasons.append(f"{name} ({agreement})")
    raise UserError(f"derivative: auto finds no backend that works: {'; '.join(reasons)}: use psd_m or psd_u")


def unchecked(student: FlowMap) -> str:
    """Why the backend cannot be checked on this student; empty where it can."""
    if is_sharded(student):  # of which there is no copy in float64
        return "the student is in pieces; a run of one step with trainer.strategy=auto checks it"
    if isinstance(student, nn.Module) and sum(p.numel() for p in student.parameters()) > LARGEST:
        return f"the student has more than {LARGEST:,} parameters, of which a float64 copy is too large"
    return ""


def few(inputs: Inputs) -> Inputs:
    """A few of the samples, of both kinds where there are both: s < t and s = t."""
    off, on = ((inputs.times.s < inputs.times.t) == kind for kind in (True, False))
    most = CHECKED_SAMPLES - min(1, int(on.sum()))
    first = off.nonzero().flatten()[:most]
    rows = torch.cat([first, on.nonzero().flatten()[: CHECKED_SAMPLES - len(first)]])
    return Inputs(
        inputs.student,
        inputs.teacher,
        PathSample(*(v[rows] for v in inputs.path)),
        Times(*(v[rows] for v in inputs.times)),
        take_cond(inputs.cond, rows),
    )


class TangentNorms:
    """Collects the size of tangents by (s, t)."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.sizes: list[Tensor] = []

    def __call__(self, observed: Observed) -> None:
        s, t = ((v.detach() * PARTS).long().clamp(0, PARTS - 1) for v in (observed.s, observed.t))
        self.parts.append(s * PARTS + t)
        self.sizes.append(observed.tangent.detach().float().flatten(1).square().mean(1).sqrt())

    def logs(self) -> dict[str, Tensor]:
        """Means over the parts that hold a sample."""
        if not self.parts:
            return {}
        parts, sizes = torch.cat(self.parts), torch.cat(self.sizes)
        count = torch.bincount(parts, minlength=PARTS**2)
        mean = torch.bincount(parts, sizes.double(), minlength=PARTS**2) / count.clamp_min(1)
        return {
            f"tangent_norm/s{i // PARTS / PARTS:g}_t{i % PARTS / PARTS:g}": mean[i].float()
            for i, n in enumerate(count.tolist())
            if n > 0
        }


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
