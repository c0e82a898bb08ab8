"""What every objective takes and gives: ``loss(student, teacher, path, times, cond) -> LossOutput``."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from fmtt.flow.interpolant import Interpolant
from fmtt.types import Cond, FlowMap, VelocityField


class Times(NamedTuple):
    """Times (B,) with s <= u <= t: where we are, a point between, where we go."""

    s: Tensor
    u: Tensor
    t: Tensor


class PathSample(NamedTuple):
    """A point of the interpolant path and what made it, each (B, *D)."""

    x_s: Tensor
    x_0: Tensor
    x_1: Tensor
    velocity_s: Tensor


class LossOutput(NamedTuple):
    """Loss per sample (B,), a mean over the data's dimensions, and scalars to log."""

    per_sample: Tensor
    logs: dict[str, Tensor]


class FlowMapLoss(Protocol):
    """An objective. ``teacher`` gives b_t(x); objectives that need none ignore it."""

    def __call__(
        self,
        student: FlowMap,
        teacher: VelocityField,
        path: PathSample,
        times: Times,
        cond: Cond | None = None,
    ) -> LossOutput: ...


def sample_path(interpolant: Interpolant, x_0: Tensor, x_1: Tensor, s: Tensor) -> PathSample:
    """The path's point at ``s`` (B,) between noise and data (B, *D)."""
    return PathSample(interpolant.interpolate(x_0, x_1, s), x_0, x_1, interpolant.data_velocity(x_0, x_1, s))


def mean_square(residual: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, *D) to (B,)."""
    return residual.square().flatten(1).mean(1)
