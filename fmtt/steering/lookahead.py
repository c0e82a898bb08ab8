"""Look-aheads l_t(x): cheap guesses, made at time t, of where a particle will be at time 1.

A look-ahead is the identity at t = 1, whatever it does before; that is all that the exact weights ask.
Everything that depends on t, the grid of a multi-step look-ahead included, is differentiated.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.interpolant import Interpolant
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, VelocityField

NAMES = ("flow_map", "denoiser", "euler", "none")


class Lookahead(Protocol):
    """Any object with these members is a look-ahead; it may use another network than the sampler does.

    Attributes:
        passes: network forwards per sample of one call, beyond the velocity that it is given.
        uses_velocity: whether it wants the sampler's own velocity b_t(x), which costs nothing more.
    """

    @property
    def passes(self) -> int: ...
    @property
    def uses_velocity(self) -> bool: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        """The guess (B, *D) from x (B, *D), t (B,), and b_t(x) (B, *D) where ``uses_velocity``."""
        ...


class NoLookahead:
    """l_t(x) = x: the reward of the noisy state itself."""

    passes = 0
    uses_velocity = False

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        return x


class DenoiserLookahead:
    """l_t(x) = E[x_1 | x_t = x], from the sampler's own velocity."""

    passes = 0
    uses_velocity = True

    def __init__(self, interpolant: Interpolant) -> None:
        self.interpolant = interpolant

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        assert velocity is not None
        return self.interpolant.denoiser(velocity, x, t)


class EulerLookahead:
    """k Euler steps of the probability-flow ODE on a uniform grid from t to 1."""

    uses_velocity = True

    def __init__(self, velocity: VelocityField, steps: int = 1) -> None:
        self.velocity = velocity
        self.steps = _check_steps(steps)
        self.passes = self.steps - 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        assert velocity is not None
        h = (1 - t) / self.steps
        x = x + expand_like(h, x) * velocity
        for j in range(1, self.steps):
            x = x + expand_like(h, x) * self.velocity(x, t + j * h, cond)
        return x


class FlowMapLookahead:
    """k steps of a flow map on a uniform grid from t to 1; one step is X_{t,1}(x)."""

    uses_velocity = False

    def __init__(self, flow_map: FlowMap, steps: int = 1) -> None:
        self.flow_map = flow_map
        self.steps = _check_steps(steps)
        self.passes = self.steps

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        left, start = 1 - t, t
        for j in range(1, self.steps + 1):
            last = j == self.steps
            end = torch.ones_like(t) if last else t + left * (j / self.steps)
            x = self.flow_map(x, start, end, cond)
            start = end
        return x


def build(lookahead: str | Lookahead, steps: int, flow_map: FlowMap, velocity: VelocityField) -> Lookahead:
    """The look-ahead of that name over the sampler's networks; an object is passed through.

    Raises:
        UserError: when the name is unknown.
    """
    if not isinstance(lookahead, str):
        return lookahead
    if lookahead == "flow_map":
        return FlowMapLookahead(flow_map, steps)
    if lookahead == "denoiser":
        return DenoiserLookahead(flow_map.interpolant)
    if lookahead == "euler":
        return EulerLookahead(velocity, steps)
    if lookahead == "none":
        return NoLookahead()
    raise UserError(f"lookahead must be one of {', '.join(NAMES)} or a Lookahead, got {lookahead!r}")


def _check_steps(steps: int) -> int:
    if steps < 1:
        raise UserError(f"lookahead_steps must be at least 1, got {steps}")
    return int(steps)
