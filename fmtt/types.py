"""The nouns every file shares: shapes, conditions, velocity fields, flow maps, rewards.

Shape legend used in all docstrings:
    B      batch (particles are a batch)       *D   data shape, e.g. (3, 32, 32)
    N      particles of one population         P    populations (one per prompt)
    K      steps of a time grid                T    tokens of a transformer

Times run from 0 (noise) to 1 (data). ``s`` is where we are, ``t`` is where we go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from fmtt.flow.interpolant import Interpolant

Cond = Mapping[str, Tensor]
"""Conditioning, batch-first tensors by name (``label``, ``guidance_scale``, ...)."""

Time = Tensor | float
"""A time in [0, 1]: shape (B,), or one float for the whole batch."""

Reward = Callable[[Tensor, Cond | None], Tensor]
"""``reward(x1, cond)``: finished samples (B, *D) to scores (B,)."""


class VelocityField(Protocol):
    """The velocity b_t(x) of a probability-flow ODE."""

    def __call__(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor: ...


@runtime_checkable
class FlowMap(Protocol):
    """Any object with these three members is a flow map; no base class is needed."""

    @property
    def interpolant(self) -> Interpolant: ...

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """X_{s,t}(x): the ODE's solution at t that starts from x at s."""
        ...

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x), the derivative of X_{s,t}(x) with respect to t at s = t."""
        ...
