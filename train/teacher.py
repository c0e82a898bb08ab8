"""Whose velocity b_t objectives take: a frozen model, the student itself, a closed-form law; guided or not.

Guidance replaces b by b_weak + w (b - b_weak): classifier-free guidance (arXiv 2207.12598) with b_weak the
velocity under the null label, autoguidance (2406.02507) with b_weak a weaker model. A student that is
conditioned on w gets it as ``cond["guidance_scale"]`` (B,).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.procedural import MODE_RADIUS, MODE_STD, MODES
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Interpolant
from fmtt.flow.oracle import Gaussian, GaussianMixture
from fmtt.tensor import batch_time, expand_like
from fmtt.types import Cond, Time, VelocityField
from train.losses.base import PathSample, Times

SELF, ORACLE = "self", "oracle:"
"""What ``teacher`` begins with where it is no export."""
METHODS = ("cfg", "autoguidance")
OWN = "own"
"""The teacher takes the drawn scale from ``cond`` itself, as text-to-image models do."""
SCALE = "guidance_scale"


class Teacher(Protocol):
    """What a velocity is taken from."""

    @property
    def data_shape(self) -> tuple[int, ...]: ...

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor: ...


class SelfTeacher:
    """The student's own diagonal u_{t,t}, without gradients: self-distillation (arXiv 2505.18825).

    Args:
        student: the flow map in training.
        average: averaged weights by name, which are used in place (their later values count too); the
            student's own if omitted.
    """

    def __init__(self, student: NeuralFlowMap, average: Mapping[str, Tensor] | None = None) -> None:
        self.carrier = student
        if average is not None:
            self.carrier = copy.deepcopy(student).requires_grad_(False)
            for name, parameter in self.carrier.named_parameters():
                if name in average:
                    parameter.data = average[name]

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.carrier.data_shape

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x), (B, *D)."""
        return self.carrier.velocity(x, t, cond)


class LabelledMixture:
    """The exact velocity of the data set ``mixture-labelled``: one mode's, or, for the null label, all's."""

    data_shape = (2,)

    def __init__(self, interpolant: Interpolant) -> None:
        self.interpolant = interpolant
        self.all = mixture(interpolant)
        self.centred = Gaussian([0.0, 0.0], MODE_STD**2, interpolant)

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x | label), (B, 2); label MODES is the null label."""
        assert cond is not None
        label, path = cond["label"], self.interpolant.coefficients(batch_time(t, x), x)
        null = label == MODES
        mean = self.all.means.to(x)[torch.where(null, 0, label)]
        # A mode is a Gaussian at the origin that drifts along beta_t m.
        one = self.centred.velocity(x - path.beta * mean, t) + path.d_beta * mean
        return torch.where(null[:, None], self.all.velocity(x, t), one)


def mixture(interpolant: Interpolant) -> GaussianMixture:
    """The law of the data set ``mixture``: equally likely Gaussians on a circle."""
    angles = torch.arange(MODES, dtype=torch.float64) * (2 * math.pi / MODES)
    means = MODE_RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(torch.ones(MODES), means, torch.full((MODES,), MODE_STD**2), interpolant)


ORACLES: dict[str, Callable[[Interpolant], Teacher]] = {
    "mixture": mixture,
    "mixture-labelled": LabelledMixture,
}
"""Laws whose velocity is known exactly, by the name of the data set that follows them."""


class Guidance(NamedTuple):
    """What a run's guidance does to conditions and velocities.

    Args:
        method: empty, ``cfg``, ``autoguidance`` or OWN.
        weak: autoguidance's weak model.
        scale: (low, high) of w. interval: times at which it acts.
        dropout: share of samples that get the null label and w = 1.
        null_label: the label that stands for none; None where there are no labels.
    """

    method: str = ""
    weak: Teacher | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    interval: tuple[float, float] = (0.0, 1.0)
    dropout: float = 0.0
    null_label: int | None = None

    def draw(
        self, cond: Cond | None, batch: int, generator: torch.Generator, device: torch.device | str
    ) -> Cond | None:
        """``cond`` after dropout, with a scale (B,); draws nothing where neither is asked for."""
        if not self.method and self.dropout == 0:
            return cond
        own = dict(cond or {})
        low, high = self.scale
        uniform = torch.rand(2, batch, generator=generator, device=device)
        dropped = uniform[1] < self.dropout
        if self.method:
            own[SCALE] = torch.where(dropped, 1.0, low + (high - low) * uniform[0])
        if self.null_label is not None:
            own["label"] = own["label"].masked_fill(dropped, self.null_label)
        return own

    def scale_at(self, t: Tensor, cond: Cond | None) -> Tensor:
        """w (B,) at the times ``t`` (B,): 1 outside the interval."""
        assert cond is not None
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(inside, cond[SCALE].to(t), 1.0)

    def unconditional(self, velocity: VelocityField) -> VelocityField:
        """b_t(x | null label), of a field that is asked for conditional velocities."""

        def null(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
            assert cond is not None and self.null_label is not None
            return velocity(x, t, {**cond, "label": torch.full_like(cond["label"], self.null_label)})

        return null

    def guided(self, velocity: VelocityField) -> VelocityField:
        """b_weak + w (b - b_weak), with w from ``cond``, which neither model is told."""
        if self.method in ("", OWN):
            return velocity
        weak = self.unconditional(velocity) if self.weak is None else self.weak.velocity

        def field(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
            w = expand_like(self.scale_at(batch_time(t, x), cond), x).to(x.dtype)
            own = {name: value for name, value in (cond or {}).items() if name != SCALE} or None
            b_weak = weak(x, t, own)
            return b_weak + w * (velocity(x, t, own) - b_weak)

        return field

    def guided_data(self, path: PathSample, times: Times, cond: Cond | None, student: Teacher) -> PathSample:
        """``path`` with the data velocity w dI_s/ds + (1 - w) u_{s,s}(x_s | null), u the student's diagonal.

        Its mean given x_s and the label is the guided velocity, so that a student trained on it without any
        teacher learns guidance too (MeanFlow, arXiv 2505.13447, section 4.2; TVM, 2511.19797).
        """
        if not self.method:
            return path
        w = expand_like(self.scale_at(times.s, cond), path.x_s).to(path.x_s.dtype)
        own = {**(cond or {}), SCALE: torch.ones_like(times.s)}
        with torch.no_grad():
            null = self.unconditional(student.velocity)(path.x_s, times.s, own)
        return path._replace(velocity_s=w * path.velocity_s + (1 - w) * null)
