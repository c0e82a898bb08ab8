"""What is tilted and by what, what may be asked of a batch of particles, and what is then known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.interpolant import Interpolant
from fmtt.steering.cost import Cost
from fmtt.steering.lookahead import Lookahead, Recomputing
from fmtt.steering.ranks import ALONE, Ranks
from fmtt.tensor import take_cond
from fmtt.types import Cond, Reward, VelocityField


class Probes(NamedTuple):
    """Random directions per particle, for what one reverse pass cannot give.

    Attributes:
        count: of the Laplacian's probes, or antithetic pairs of a zeroth-order gradient.
        zeroth: whether the gradient of the reward is estimated from rewards alone.
        scale: how far a zeroth-order probe moves the look-ahead, in data units.
    """

    count: int = 1
    zeroth: bool = False
    scale: float = 0.1


@dataclass(frozen=True)
class Problem:
    """What is tilted, and by what: everything that does not change from step to step.

    Attributes:
        cond: conditioning with one row per particle; of this rank's particles where several share a run.
        chunk_size: particles per network call; None is all of them.
        ranks: the processes that share the particles.
    """

    velocity: VelocityField
    interpolant: Interpolant
    lookahead: Lookahead
    reward: Reward
    cond: Cond | None
    chunk_size: int | None
    cost: Cost
    probes: Probes = Probes()
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.probes.count < 1:
            raise UserError(f"num_probes must be at least 1, got {self.probes.count}")
        if not 0 < self.probes.scale < float("inf"):
            raise UserError(f"probe_scale must be positive, got {self.probes.scale}")

    @cached_property
    def recomputing(self) -> Recomputing | None:
        """The look-ahead, if it repeats forwards in a reverse pass."""
        return self.lookahead if isinstance(self.lookahead, Recomputing) else None


class Needs(NamedTuple):
    """Which quantities of a state are wanted; each costs only what it must.

    Attributes:
        laplacian: whether L f is wanted too; needs velocity and gradient.
        residual: whether d/dt f + b . grad f is wanted too; needs velocity and gradient.
    """

    velocity: bool = False
    value: bool = False
    gradient: bool = False
    endpoint: bool = False
    laplacian: bool = False
    residual: bool = False


class Evaluation(NamedTuple):
    """Quantities of B particles at one time; None where not wanted.

    Attributes:
        velocity: b (B, *D).
        value: f (B,) in float64.
        gradient: grad_x f (B, *D).
        residual: c = d/dt f + b . grad f (B,) in float64.
        endpoint: the look-ahead l_t(x) (B, *D).
        langevin: an unbiased estimate of L f = Laplacian f + s . grad f (B,) in float64.
    """

    velocity: Tensor | None = None
    value: Tensor | None = None
    gradient: Tensor | None = None
    residual: Tensor | None = None
    endpoint: Tensor | None = None
    langevin: Tensor | None = None


def score(problem: Problem, x: Tensor, cond: Cond | None) -> Tensor:
    """The reward of samples (B, *D), shape (B,), counted and checked.

    Raises:
        UserError: when the reward is not one finite number per sample.
    """
    value = problem.reward(x, cond)
    problem.cost.reward_calls += x.shape[0]
    if not isinstance(value, Tensor) or value.shape != (x.shape[0],):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"the reward must return shape ({x.shape[0]},) for {x.shape[0]} samples, got {shape}")
    if not bool(torch.isfinite(value).all()):
        raise UserError("the reward returned a value that is not finite; bound it, for instance with clamp")
    return value


def in_chunks(
    work: Callable[..., Evaluation], x: Tensor, cond: Cond | None, size: int | None, *more: Tensor | None
) -> Evaluation:
    """Apply ``work(x, cond, *more)`` to ``size`` particles at a time and join the results."""
    if size is None or size >= x.shape[0]:
        return work(x, cond, *more)
    rows = [slice(i, i + size) for i in range(0, x.shape[0], size)]
    parts = [work(x[r], take_cond(cond, r), *(None if m is None else m[r] for m in more)) for r in rows]
    return Evaluation(*(None if c[0] is None else torch.cat(c) for c in zip(*parts, strict=True)))
