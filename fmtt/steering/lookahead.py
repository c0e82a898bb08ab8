"""Look-aheads l_t(x): cheap guesses, made at time t, of where a particle will be at time 1.

A look-ahead is the identity at t = 1, whatever it does before; that is all that the exact weights ask.
Everything that depends on t, the grid of a multi-step look-ahead included, is differentiated. It need not
use the sampler's networks: ``FlowMapLookahead(other_map)`` looks ahead by another map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from fmtt.errors import UserError
from fmtt.flow import ode
from fmtt.flow.interpolant import Interpolant
from fmtt.tensor import expand_like, expanded_time, per_time
from fmtt.types import Cond, FlowMap, Time, VelocityField

NAMES = ("flow_map", "denoiser", "euler", "ode", "none")


class Lookahead(Protocol):
    """Any object with these members is a look-ahead; it may use another network than the sampler does.

    Attributes:
        passes: network forwards per sample of one call, beyond the velocity that it is given; of the last
            call, where they vary.
        uses_velocity: whether it wants the sampler's own velocity b_t(x), which costs nothing more.
    """

    @property
    def passes(self) -> int: ...
    @property
    def uses_velocity(self) -> bool: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        """The guess (B, *D) from x (B, *D), t (B,), and b_t(x) (B, *D) where ``uses_velocity``."""
        ...


@runtime_checkable
class Recomputing(Protocol):
    """A look-ahead that repeats forwards in a reverse pass.

    Attributes:
        recomputed: such forwards per sample and reverse pass; of the last call, where they vary.
    """

    @property
    def recomputed(self) -> int: ...


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
    """k Euler steps of the probability-flow ODE on a uniform grid from t to 1.

    Args:
        checkpoint: keep only the states between steps and repeat each forward in the reverse pass, so that
            memory is that of one step.
    """

    uses_velocity = True

    def __init__(self, velocity: VelocityField, steps: int = 1, *, checkpoint: bool = False) -> None:
        self.velocity = velocity
        self.steps = _check_steps(steps)
        self.passes = self.steps - 1
        self.checkpoint = checkpoint
        self.recomputed = self.passes if checkpoint else 0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        assert velocity is not None
        h = (1 - t) / self.steps
        step = expand_like(h, x).to(x.dtype)  # times are wider than half-precision states
        x = x + step * velocity
        for j in range(1, self.steps):
            now = per_time(lambda t, j=j: t + j * ((1 - t) / self.steps), t)
            x = x + step * _call(self.checkpoint, self.velocity, x, now, cond)
        return x


class FlowMapLookahead:
    """k steps of a flow map on a uniform grid from t to 1; one step is X_{t,1}(x).

    Args:
        checkpoint: as in :class:`EulerLookahead`.
    """

    uses_velocity = False

    def __init__(self, flow_map: FlowMap, steps: int = 1, *, checkpoint: bool = False) -> None:
        self.flow_map = flow_map
        self.steps = _check_steps(steps)
        self.passes = self.steps
        self.checkpoint = checkpoint
        self.recomputed = self.passes if checkpoint else 0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        start = t
        for j in range(1, self.steps + 1):
            share = j / self.steps
            if j == self.steps:
                end = expanded_time(1.0, t)
            else:
                end = per_time(lambda t, share=share: t + (1 - t) * share, t)
            x = _call(self.checkpoint, self.flow_map, x, start, end, cond)
            start = end
        return x


class OdeLookahead:
    """The probability-flow ODE from t to 1, solved to a tolerance (dopri5; needs torchdiffeq).

    The solver's time runs from 0 to 1 for every sample, so each has its own t and the derivative in t is
    right. It chooses its steps for the samples of a call together: chunks agree to the tolerance, not to
    the bit.

    Args:
        tol: relative and absolute tolerance.
        checkpoint: as in :class:`EulerLookahead`, for the solver's stages.
    """

    uses_velocity = False

    def __init__(self, velocity: VelocityField, tol: float = 1e-5, *, checkpoint: bool = False) -> None:
        if not 0 < tol < 1:
            raise UserError(f"lookahead_tol must lie between 0 and 1, got {tol}")
        self.velocity = velocity
        self.tol = tol
        self.checkpoint = checkpoint
        self.passes = 8
        """Of one dopri5 step, until a call has counted its own."""

    @property
    def recomputed(self) -> int:
        return self.passes if self.checkpoint else 0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None, velocity: Tensor | None) -> Tensor:
        start, left, calls = t, 1 - t, 0

        def field(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
            nonlocal calls
            calls += 1
            now = (start + left * t).clamp_max(1.0)
            return expand_like(left, x).to(x.dtype) * _call(self.checkpoint, self.velocity, x, now, cond)

        end = ode.solve(field, x, 0.0, 1.0, cond, tol=self.tol)
        self.passes = calls
        return end


def build(
    lookahead: str | Lookahead,
    steps: int,
    flow_map: FlowMap,
    velocity: VelocityField,
    *,
    tol: float = 1e-5,
    checkpoint: bool = False,
) -> Lookahead:
    """The look-ahead of that name over the given networks; an object is passed through.

    Args:
        steps: k of "flow_map" and "euler".
        tol: of "ode".
        checkpoint: repeat forwards in the reverse pass instead of keeping what they computed.

    Raises:
        UserError: when the name is unknown.
    """
    if not isinstance(lookahead, str):
        return lookahead
    if lookahead == "flow_map":
        return FlowMapLookahead(flow_map, steps, checkpoint=checkpoint)
    if lookahead == "denoiser":
        return DenoiserLookahead(flow_map.interpolant)
    if lookahead == "euler":
        return EulerLookahead(velocity, steps, checkpoint=checkpoint)
    if lookahead == "ode":
        return OdeLookahead(velocity, tol, checkpoint=checkpoint)
    if lookahead == "none":
        return NoLookahead()
    raise UserError(f"lookahead must be one of {', '.join(NAMES)} or a Lookahead, got {lookahead!r}")


ONE_STEP = ("none", "denoiser", "ode")
"""Look-aheads that have no number of steps to choose."""


def choose(
    lookahead: str | Lookahead,
    steps: int,
    flow_map: FlowMap,
    other_map: FlowMap | None,
    velocity: VelocityField,
    *,
    tol: float = 1e-5,
    checkpoint: bool = False,
) -> Lookahead:
    """:func:`build` with another map to look ahead by, which only lookahead="flow_map" can use.

    Raises:
        UserError: when the name is unknown, or the other map or another argument would not be used.
    """
    if other_map is not None and lookahead != "flow_map":
        raise UserError(f"lookahead_map needs lookahead='flow_map', got {lookahead!r}")
    if steps != 1 and lookahead in ONE_STEP:
        raise UserError(f"lookahead_steps={steps} is of no use to lookahead={lookahead!r}: leave it out")
    if checkpoint and lookahead in ("none", "denoiser"):
        raise UserError(f"checkpoint is of no use to lookahead={lookahead!r}: leave it out")
    return build(lookahead, steps, other_map or flow_map, velocity, tol=tol, checkpoint=checkpoint)


def described(lookahead: str | Lookahead, tol: float, checkpoint: bool) -> tuple[str, float, bool]:
    """What processes that share a run can compare of their look-aheads."""
    return lookahead if isinstance(lookahead, str) else type(lookahead).__name__, tol, checkpoint


def _call(checkpoint: bool, network: Callable[..., Tensor], *args: object) -> Tensor:
    """``network(*args)``; in a recorded graph, without what is inside it."""
    if checkpoint and torch.is_grad_enabled():
        return cast(Tensor, recompute(network, *args, use_reentrant=False))
    return network(*args)


def _check_steps(steps: int) -> int:
    if steps < 1:
        raise UserError(f"lookahead_steps must be at least 1, got {steps}")
    return int(steps)
