"""A search's two operations on P*N candidates: select and clone, and move on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import dynamics, resampling, smc
from fmtt.steering.dynamics import Evaluation, Needs, Problem
from fmtt.steering.schedule import Plan
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap

SELECTIONS = ("top", "tempered")


class Survivors(NamedTuple):
    """Candidates after a selection.

    Attributes:
        x: this rank's clones (B, *D) of the survivors.
        known: what is known at them.
        parents: (P, N) the candidate that each clone continues.
        carried: (B,) bool: the first clones, which go on without noise.
        rewards: (P, N) look-ahead rewards before the selection.
    """

    x: Tensor
    known: Evaluation
    parents: Tensor
    carried: Tensor
    rewards: Tensor


class Seen(NamedTuple):
    """Particles (B, *D) and what is known of them."""

    x: Tensor
    known: Evaluation


@dataclass(frozen=True)
class Selector:
    """A search's constants.

    Attributes:
        cond: conditions of all P*N candidates.
        keep: survivors of a selection.
        temperature: of the resampling that selects them; None keeps the top.
        guidance: multiplier of the reward's gradient; 0 asks for none.
        step_size: one of STEP_SIZES.
    """

    flow_map: FlowMap
    problem: Problem
    cond: Cond | None
    plan: Plan
    kernel: str
    noisy: tuple[bool, ...]
    keep: int
    temperature: float | None
    guidance: float
    P: int
    N: int
    generator: torch.Generator | None
    step_size: str = "gradient"

    def look(
        self, x: Tensor, k: int, total: int, cond: Cond | None = None, *, gradient: bool = False
    ) -> Evaluation:
        """What a move from t_k needs, for this rank's share x of ``total`` candidates or survivors."""
        renoises = self.kernel == "renoise"
        needs = Needs(velocity=not renoises, gradient=gradient, endpoint=renoises)
        return dynamics.evaluate(self.problem, x, self.plan.times[k], needs, cond, self.generator, total)

    def select(self, x: Tensor, k: int) -> Survivors:
        """Look ahead from all candidates, keep the best, clone them back to N."""
        ranks, total, kept = self.problem.ranks, self.P * self.N, self.P * self.keep
        renoises = self.kernel == "renoise"
        shared = self.problem.lookahead.uses_velocity and not renoises
        needs = Needs(velocity=shared, value=True, endpoint=renoises)
        known = dynamics.evaluate(self.problem, x, self.plan.times[k], needs)
        assert known.value is not None
        rewards = ranks.gather(known.value, total).reshape(self.P, self.N)
        chosen = ranks.same(self._chosen(rewards, k))  # (P, keep)
        rows = smc.flat_index(chosen, self.N)
        x, known = ranks.exchange(Seen(x, known), rows, total)
        cond = take_cond(self.cond, ranks.share(rows))
        pulls = self.guidance != 0 and self.plan.strengths[k + 1] != 0
        if pulls or not (renoises or shared):
            known = self.look(x, k, kept, cond, gradient=pulls)
        order = torch.arange(self.N, device=x.device)
        clones = smc.flat_index((order % self.keep).expand(self.P, self.N), self.keep)
        first = torch.ones_like(chosen, dtype=torch.bool)
        if self.temperature is not None:  # sorted, so that copies of one survivor are neighbours
            first[:, 1:] = chosen[:, 1:] != chosen[:, :-1]
        carried = first[:, order % self.keep] & (order < min(self.keep, self.N // 2))
        x, known = ranks.exchange(Seen(x, known), clones, kept)
        own = ranks.share(carried.reshape(-1))
        return Survivors(x, known, chosen[:, order % self.keep], own, rewards)

    def _chosen(self, rewards: Tensor, k: int) -> Tensor:
        """The survivors (P, keep) among candidates of these rewards (P, N)."""
        if self.temperature is None:
            return rewards.topk(self.keep, dim=1).indices
        log_weights = rewards * (self.plan.strengths[k + 1] / self.temperature)
        return resampling.systematic(log_weights, self.generator, self.keep)

    def move(self, x: Tensor, now: Evaluation, pull: Tensor | None, k: int, carried: Tensor | None) -> Tensor:
        """This rank's candidates at t_{k+1}: fresh noise for all but those ``carried`` (B,)."""
        t, t_next, strength = self.plan.times[k], self.plan.times[k + 1], self.plan.strengths[k + 1]
        transition = dynamics.kernel(
            self.kernel, self.problem.interpolant, x, now, t, t_next, self.plan.noises[k]
        )
        if not self.noisy[k]:
            return transition.mean
        shape = (self.P * self.N, *x.shape[1:])
        noise = self.problem.ranks.share(smc.normal(shape, self.generator, x.device, x.dtype))
        shift = None
        if pull is not None:
            shift = dynamics.shift_of(
                pull, transition, t_next - t, strength, self.guidance, 0.0, self.step_size
            )
        moved, _ = dynamics.guided(transition, shift, noise)
        if carried is not None:
            with self.problem.ranks.together("carrying the best on"):
                index = carried.nonzero().squeeze(1)
                if len(index):
                    cond = take_cond(self.problem.cond, index)
                    moved[index] = self._carry(x[index], smc.gather(now, index), k, cond)
        return moved

    def _carry(self, x: Tensor, now: Evaluation, k: int, cond: Cond | None) -> Tensor:
        """The flow's own next state, which leaves an exact look-ahead where it was."""
        t, t_next = self.plan.times[k], self.plan.times[k + 1]
        if now.velocity is not None:
            return x + (t_next - t) * now.velocity
        if self.problem.lookahead.uses_velocity:
            assert now.endpoint is not None
            return dynamics.interpolate_towards(self.problem.interpolant, x, now.endpoint, t, t_next)
        return dynamics.advance(self.problem, self.flow_map, x, t, t_next, cond)


def rounds_at(rounds: int, noisy: tuple[bool, ...], *, at_start: bool) -> tuple[int, ...]:
    """R steps spread evenly over those that draw noise."""
    first = 0 if at_start else 1
    steps = [k for k, draws in enumerate(noisy) if draws and k >= first]
    if not 1 <= rounds <= len(steps):
        raise UserError(
            f"rounds must lie between 1 and {len(steps)}, the steps that draw noise and can be selected at, "
            f"got {rounds}: use more num_steps, or noise > 0"
        )
    return tuple(steps[j * len(steps) // rounds] for j in range(rounds))


def check_selection(selection: str, temperature: float) -> float | None:
    """The temperature of a tempered selection; None for the top.

    Raises:
        UserError: when the name is unknown or the temperature not positive.
    """
    if selection not in SELECTIONS:
        raise UserError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature must be positive, got {temperature}")
    return temperature if selection == "tempered" else None
