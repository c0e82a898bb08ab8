"""The steps of a sampler as a pipeline's user sees them: noise levels, and a call after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.types import Cond, FlowMap, Time, VelocityField

StepEnd = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]
"""diffusers' ``callback(pipeline, step, sigma, {"latents": x})``; the step began at noise level sigma."""


def times_of(sigmas: Sequence[float] | None, steps: int) -> list[float]:
    """The K + 1 times from noise levels, which fall towards 0 (left out); uniform if None.

    Raises:
        UserError: when they do not fall, or are not K.
    """
    if sigmas is None:
        return [k / steps for k in range(steps + 1)]
    if len(sigmas) != steps or any(a <= b for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        raise UserError(f"sigmas must be {steps} falling numbers, without the final 0, got {list(sigmas)}")
    return [1 - sigma for sigma in sigmas] + [1.0]


@torch.no_grad()
def sample_through(
    flow_map: FlowMap,
    x: Tensor,
    cond: Cond | None,
    times: Sequence[float],
    chunk_size: int | None = None,
    told: Callable[[int, float, Tensor], Tensor] | None = None,
) -> Tensor:
    """Map steps through ``times`` from x (B, *D), all samples abreast.

    Args:
        told: called with the step, its noise level and the samples; what it returns goes on.
    """
    size = chunk_size or x.shape[0]
    rows = [slice(i, i + size) for i in range(0, x.shape[0], size)]
    own = cond or {}
    for k, (s, t) in enumerate(zip(times, times[1:], strict=False)):
        x = torch.cat([flow_map(x[r], s, t, {name: v[r] for name, v in own.items()}) for r in rows])
        if told is not None:
            x = told(k, 1 - s, x)
    return x


class ToldVelocity:
    """A velocity that reports a step when it is asked for a later time: in a tilt, once a step."""

    def __init__(self, velocity: VelocityField, told: Callable[[int, float, Tensor], Any]) -> None:
        self.velocity, self.told = velocity, told
        self.last, self.step = -1.0, 0

    def __call__(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        now = float(t.reshape(-1)[0] if isinstance(t, Tensor) else t)
        if now > self.last:
            if self.last >= 0:
                self._tell(x)
            self.last = now
        return self.velocity(x, t, cond)

    def finish(self, steps: int, x: Tensor) -> None:
        """Report the last step, at whose end a velocity may not have been wanted."""
        if self.step < steps:
            self._tell(x)

    def _tell(self, x: Tensor) -> None:
        self.told(self.step, 1 - self.last, x.detach())
        self.step += 1
