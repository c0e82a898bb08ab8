"""The start-up check: are the derivatives that an objective takes of this network right?

Forward-mode AD is silently wrong under some kernels and compilers, and finite differences are under low
precision or dropout. The objective itself is run on a few samples, once with the chosen backend and once in
float64 with fourth-order central differences, and the derivatives that it takes are compared. Where its
gradient goes through them, so are their gradients in the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.flow.derivative import Derivative, Observed, using
from fmtt.types import Cond
from train.derivative_reference import Inputs, Reference, filled
from train.losses.base import FlowMapLoss
from train.teacher import SCALE

TOLERANCE = 2e-3
"""Largest relative error in float32: forward-mode AD has 1e-6, finite differences have up to 2e-4."""
TOLERANCE_HALF = 5e-2
"""Under autocast to half precision, or with weights in it; forward-mode AD in bfloat16 has up to 3e-2."""
ROUNDING_FACTOR, LARGEST_ROUNDING = 3.0, 0.06
"""In half precision a derivative may be off by this much more than the value itself, unless that is off by
more than rounding explains."""
GRADIENT_FACTOR = 5.0
"""Gradients through a derivative lose this much more. A fused layer norm's are off by 0.07 and more."""
STILL = 0.1
"""Derivatives smaller than this share of the value are compared with that share of it."""
AFFINE = (nn.LayerNorm, nn.GroupNorm)


class Agreement(NamedTuple):
    """How well a backend agrees with the reference.

    Args:
        calls: derivatives that the objective takes; 0: it takes none, and nothing was compared.
        error: the largest relative error among them.
        gradient_error: that of their gradients in the weights; None where the objective uses none.
        tolerance: what ``error`` may be.
    """

    calls: int
    error: float
    gradient_error: float | None
    tolerance: float

    @property
    def good(self) -> bool:
        within = self.error <= self.tolerance  # false for nan
        return within and (
            self.gradient_error is None
            or self.gradient_error <= GRADIENT_FACTOR * min(self.tolerance, TOLERANCE_HALF)
        )

    def __str__(self) -> str:
        gradient = "" if self.gradient_error is None else f", of its gradient {self.gradient_error:.1e}"
        return f"relative error {self.error:.1e}{gradient} (tolerance {self.tolerance:.0e})"


def refusal(student: object, derivative: Derivative) -> str | None:
    """Why this network cannot be differentiated so, in one line; None where nothing speaks against it.

    These are known to be wrong or to crash, whatever a check on one batch would say.
    """
    modules = list(student.named_modules()) if isinstance(student, nn.Module) else []
    compiled = [name for name, m in modules if _is_compiled(m)]
    if derivative.name == "finite_difference":
        dropped = [n for n, m in modules if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        if dropped:
            return (
                f"derivative: finite_difference compares two passes, which dropout ({dropped[0]}) makes "
                "differ: set dropout to 0, or use jvp"
            )
        if half := half_precision(student):
            return (
                f"derivative: finite_difference needs a network in float32, this one has weights in {half} "
                "that round its differences away: use jvp, or float32 (teacher.dtype of a pipeline)"
            )
        return None
    if compiled and derivative.name == "flash_jvp":
        return (
            "derivative: flash_jvp brings its own jvp, which torch.compile ignores: do not compile the "
            "student, or use jvp"
        )
    affine = [n for n, m in modules if isinstance(m, AFFINE) and m.weight is not None]
    if compiled and affine:
        return (
            f"derivative: {derivative.name} fails in a compiled network with an affine norm ({affine[0]}): "
            "do not compile it, use a norm without parameters or nn.RMSNorm, or finite_difference"
        )
    return None


def half_precision(student: object) -> str:
    """The name of a half precision that some of a network's weights are in; empty where none are."""
    weights = student.parameters() if isinstance(student, nn.Module) else ()
    return next((str(p.dtype)[6:] for p in weights if p.dtype in (torch.float16, torch.bfloat16)), "")


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def measure(objective: FlowMapLoss, inputs: Inputs, derivative: Derivative) -> Agreement:
    """How the derivatives that ``objective`` takes on ``inputs`` agree with a float64 reference.

    Weights that are zero, as output layers are before training, are given small random values meanwhile:
    behind them no error would show.

    Raises:
        UserError: when the network cannot be differentiated so at all, naming the remedy.
    """
    autocast = torch.is_autocast_enabled(inputs.path.x_s.device.type)
    half = autocast or bool(half_precision(inputs.student))
    tolerance = TOLERANCE_HALF if half else TOLERANCE
    inputs = inputs._replace(cond=_round_scale(inputs))
    with torch.no_grad():
        # What a network computes once and keeps must not be born inside a derivative: no copy and no
        # compiler can read it afterwards.
        inputs.student.velocity(inputs.path.x_s, inputs.times.s, inputs.cond)
    with filled(inputs.student):
        reference = Reference(objective, inputs)
        expected = reference.derivatives()
        # Where the network itself is not finite, the loss says so with its (s, t).
        if not expected or not all(bool(o.tangent.isfinite().all()) for o in expected):
            return Agreement(0, 0.0, None, tolerance)
        reason = refusal(inputs.student, derivative)
        if reason:
            raise UserError(reason)
        found, used = _derivatives(objective, inputs, derivative)
        pairs = list(zip(found, expected, strict=True))
        error = max(_relative(a, b) for a, b in pairs)
        if half:
            rounding = max(_rounding(a, b) for a, b in pairs)
            if rounding <= LARGEST_ROUNDING:
                tolerance = max(tolerance, ROUNDING_FACTOR * rounding)
        gradient_error = reference.gradient_error(found, used) if any(used) else None
    return Agreement(len(expected), error, gradient_error, tolerance)


def check(objective: FlowMapLoss, inputs: Inputs, derivative: Derivative) -> Agreement:
    """:func:`measure`, where disagreement is an error.

    Raises:
        UserError: naming the key and the remedy.
    """
    agreement = measure(objective, inputs, derivative)
    if not agreement.good:
        raise UserError(
            f"derivative: {derivative.name} disagrees with finite differences in float64 on this network, "
            f"{agreement}: {_remedy(inputs.student, derivative, agreement)}"
        )
    return agreement


def _round_scale(inputs: Inputs) -> Cond | None:
    """The conditions with a guidance scale that is a power of two.

    FLUX.1 rounds 1000 times the scale to its weights' dtype, which the float64 reference does not; this is
    the same in every dtype.
    """
    cond, network = inputs.cond, getattr(inputs.student, "network", None)
    scale = (cond or {}).get(SCALE)
    if scale is None:
        default = getattr(network, "guidance", None)
        if not isinstance(default, float):
            return cond
        scale = inputs.times.s.new_full((len(inputs.times.s),), default)
    return {**(cond or {}), SCALE: scale.clamp_min(2.0**-4).log2().round().exp2()}


def _remedy(student: object, derivative: Derivative, agreement: Agreement) -> str:
    modules = list(student.modules()) if isinstance(student, nn.Module) else []
    if derivative.name == "finite_difference":
        return "use derivative: jvp, or a smoother network (lower frequencies of the time embeddings)"
    if agreement.gradient_error is not None and agreement.error <= agreement.tolerance:
        if derivative.name == "flash_jvp":
            return "its kernel has no gradient through the derivative: use jvp, or lmd or emd as objective"
        if any(isinstance(m, nn.LayerNorm) for m in modules):
            return "torch's layer norm has a wrong gradient there: use nn.RMSNorm, or lmd or emd as objective"
        return "use derivative: finite_difference, or lmd or emd as objective"
    if (half := half_precision(student)) and not any(_is_compiled(m) for m in modules):
        return f"weights in {half} may round too much: use teacher.dtype=float32, or objective psd_u or psd_m"
    if any(_is_compiled(m) for m in modules):
        return "torch.compile ignores a custom jvp: do not compile the student, or use finite_difference"
    return (
        "an operation of the network has a wrong forward-mode derivative, or a compiler ignores its own: "
        "use finite_difference"
    )


def _derivatives(
    objective: FlowMapLoss, inputs: Inputs, derivative: Derivative
) -> tuple[list[Observed], list[bool]]:
    """The derivatives that the chosen backend gives, and whether the loss's gradient goes through each."""
    seen: list[Observed] = []
    try:
        with torch.enable_grad(), using(derivative, seen.append):
            loss = objective(*inputs).per_sample.sum()
        used = [_reaches(loss, o.tangent) for o in seen]
    except UserError:
        raise
    except Exception as error:  # kernels and compilers fail in many ways
        if "torch/utils/checkpoint.py" in _files(error):
            raise UserError(
                f"derivative: {derivative.name} fails through reentrant activation checkpointing: use "
                "use_reentrant=False, or derivative: finite_difference"
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        other = "jvp" if derivative.name != "jvp" else "finite_difference"
        raise UserError(
            f"derivative: {derivative.name} fails on this network ({reason}): use {other}"
        ) from error
    return seen, used


def _reaches(loss: Tensor, tangent: Tensor) -> bool:
    if not (loss.requires_grad and tangent.requires_grad):
        return False
    return torch.autograd.grad(loss, tangent, retain_graph=True, allow_unused=True)[0] is not None


def _files(error: BaseException) -> str:
    names, trace = [], error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_filename.replace("\\", "/"))
        trace = trace.tb_next
    return "\n".join(names)


def _relative(found: Observed, expected: Observed) -> float:
    size = max(float(expected.tangent.norm()), STILL * float(expected.value.norm()), 1e-30)
    return float((found.tangent.detach().double() - expected.tangent.double()).norm()) / size


def _rounding(found: Observed, expected: Observed) -> float:
    """Relative error of the value, to which no derivative belongs."""
    value = expected.value.double()
    return float((found.value.detach().double() - value).norm()) / max(float(value.norm()), 1e-30)
