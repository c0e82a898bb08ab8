"""What the baselines share: the problem they solve, checks of their arguments, and an unweighted result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import dynamics, setup
from fmtt.steering.dynamics import Needs, Problem
from fmtt.steering.lookahead import Lookahead
from fmtt.steering.result import SearchHistory, SearchResult
from fmtt.steering.setup import Start
from fmtt.types import Cond, FlowMap, Reward, VelocityField


class Round(NamedTuple):
    """Rewards (P*N,) of the candidates that were compared at time t."""

    t: float
    rewards: Tensor


def problem(
    flow_map: FlowMap,
    reward: Reward,
    start: Start,
    lookahead: Lookahead,
    chunk_size: int | None,
    velocity: VelocityField | None = None,
) -> Problem:
    """The problem of the particles ``start``; the map's own velocity drives them if none is given."""
    field = flow_map.velocity if velocity is None else velocity
    return Problem(field, flow_map.interpolant, lookahead, reward, start.cond, chunk_size, start.cost)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Refuse a count that is too small.

    Raises:
        UserError: naming the argument.
    """
    if value < least:
        raise UserError(f"{name} must be at least {least}, got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse an unknown name.

    Raises:
        UserError: naming the argument and what it may be.
    """
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_gradient(problem: Problem, start: Start, method: str) -> None:
    """Refuse a reward without a gradient where the method is made of it.

    Raises:
        UserError: naming the method.
    """
    if not setup.uses_gradient(problem, start, "auto"):
        raise UserError(f"{method} needs a differentiable reward: use best-of-N, multi-round or FK steering")


def final_rewards(problem: Problem, x: Tensor, cond: Cond | None) -> Tensor:
    """Rewards of finished samples x (B, *D), float64 (B,)."""
    value = dynamics.evaluate(problem, x, 1.0, Needs(value=True), cond).value
    assert value is not None
    return value


def unweighted(
    start: Start, samples: Tensor, rewards: Tensor, law: str, rounds: Sequence[Round] = ()
) -> SearchResult:
    """The result of a method that claims no law.

    Args:
        samples: (P*N, *D); N need not be the number of particles that the method started with.
        law: the sentence that says what the samples are.
        rounds: comparisons along the way, for the history.
    """
    P = start.num_populations
    empty = rewards.new_zeros(0, P)
    tables = [r.rewards.reshape(P, -1) for r in rounds]
    return SearchResult(
        samples=samples,
        rewards=rewards.to(samples.dtype),
        population=torch.arange(P, device=samples.device).repeat_interleave(samples.shape[0] // P),
        history=SearchHistory(
            torch.tensor([r.t for r in rounds], dtype=torch.float64),
            torch.stack([table.amax(1) for table in tables]) if tables else empty,
            torch.stack([table.mean(1) for table in tables]) if tables else empty,
        ),
        cost=start.cost,
        base_law=law,
        num_populations=P,
    )
