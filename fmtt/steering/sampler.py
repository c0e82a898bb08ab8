"""Flow Map Trajectory Tilting: the state of a run and its step (arXiv 2511.22688).

Algorithm, for K steps on a grid t_0 < ... < t_K = 1:
    init    x ~ N(0, I), log w = 0
    step k  1. look ahead:  f = r(l_t(x)), its gradient and residual, from one reverse pass
            2. move:        x' ~ N(m + g, v I), m from the unguided SDE, g = eps h grad(lambda f)
            3. strengthen:  lambda' from the plan, or from the weights and the last f
            4. weigh:       log w += dA
            5. if due:      log Z += log mean w, resample, log w = 0
    end     log Z += log mean w
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.steering import adaptive, dynamics, resampling, smc
from fmtt.steering.dynamics import Evaluation, Kernel, Problem
from fmtt.steering.rule import Rule
from fmtt.steering.weights import Strength


class Particles(NamedTuple):
    """Everything that belongs to a particle; resampling gathers all of it.

    Attributes:
        x: (B, *D).
        evaluation: what is known at x.
        potential: lambda f (B,) at the last look-ahead, float64.
        value: f (B,) at the last look-ahead, float64; nan before the first.
        gradient: grad f (B, *D) at the last look-ahead, or None.
        eve: (B,) initial particle within the population.
    """

    x: Tensor
    evaluation: Evaluation
    potential: Tensor
    value: Tensor
    gradient: Tensor | None
    eve: Tensor


class State(NamedTuple):
    """The sampler between steps: ``log_weights`` (P, N), ``log_z`` and lambda ``strength`` (P,), float64."""

    step: int
    particles: Particles
    log_weights: Tensor
    log_z: Tensor
    strength: Tensor


class Info(NamedTuple):
    """What one step reports; per population (P,), ``ancestors`` (P, N)."""

    t: float
    ess: Tensor
    log_z: Tensor
    work_variance: Tensor
    length: Tensor
    discrepancy: Tensor
    resampled: Tensor
    ancestors: Tensor
    strength: Tensor
    mean_reward: Tensor
    best_reward: Tensor
    guidance_ratio: Tensor


def init(problem: Problem, rule: Rule, x: Tensor, generator: torch.Generator | None = None) -> State:
    """The state before the first step, from particles x (P*N, *D)."""
    P, N = rule.num_populations, rule.num_particles
    evaluation = dynamics.evaluate(problem, x, rule.plan.times[0], rule.needs(0), generator=generator)
    zeros = torch.zeros(P, N, dtype=torch.float64, device=x.device)
    flat = zeros.reshape(-1)
    value = torch.full_like(flat, float("nan")) if evaluation.value is None else evaluation.value
    eve = torch.arange(N, device=x.device).repeat(P)
    particles = Particles(x, evaluation, flat, value, evaluation.gradient, eve)
    return State(0, particles, zeros, zeros[:, 0].clone(), zeros[:, 0].clone())


def step(problem: Problem, rule: Rule, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
    """Move, weigh and, where due, resample all particles."""
    k, particles, now = state.step, state.particles, state.particles.evaluation
    table = (rule.num_populations, rule.num_particles)
    t, t_next = rule.plan.times[k], rule.plan.times[k + 1]
    kernel = dynamics.kernel(
        rule.kernel, problem.interpolant, particles.x, now, t, t_next, rule.plan.noises[k]
    )
    noise = shift = None
    if rule.noisy(k):
        noise = smc.normal(tuple(particles.x.shape), generator, particles.x.device, particles.x.dtype)
        if rule.guides and particles.gradient is not None and rule.active(k):
            shift = dynamics.shift_of(
                particles.gradient, kernel, t_next - t, _held(rule, state), rule.guidance, rule.drifts[k]
            )
    x, log_ratio = dynamics.guided(kernel, shift, noise)
    after = dynamics.evaluate(problem, x, t_next, rule.needs(k + 1), generator=generator)

    reached, strength = _strengthen(rule, state, after)
    potential, value = particles.potential, particles.value
    if after.value is not None:
        potential, value = strength[1] * after.value, after.value
    if rule.weights == "exact":
        increment = dynamics.exact_increment(
            now, after, strength, t_next - t, deterministic=not rule.noisy(k), chi=rule.drifts[k]
        )
    elif rule.weights == "paper":
        increment = dynamics.paper_increment(now, after, strength)
    elif rule.weights == "path":
        increment = potential - particles.potential + log_ratio
    else:
        increment = torch.zeros_like(log_ratio)

    gradient = particles.gradient if after.gradient is None else after.gradient
    moved = Particles(x, after, potential, value, gradient, particles.eve)
    increment = increment.reshape(table)
    statistics = smc.increment_statistics(state.log_weights, increment)
    log_weights = state.log_weights + increment
    ess = smc.ess_fraction(log_weights)
    log_z = state.log_z + smc.log_mean_exp(log_weights)
    rewards = value.reshape(table)
    mean_reward = (torch.softmax(log_weights, 1) * rewards).sum(1)
    ratio = _guidance_ratio(shift, kernel, particles.x, now, t_next - t, table)
    new = State(k + 1, moved, log_weights, state.log_z, reached)
    new, ancestors, resampled = _resample(rule, new, ess, log_z, generator)
    return new, Info(
        t_next,
        ess,
        log_z,
        statistics.work_variance,
        statistics.length,
        statistics.discrepancy,
        resampled,
        ancestors,
        reached,
        mean_reward,
        rewards.amax(1),
        ratio,
    )


def _held(rule: Rule, state: State) -> float | Tensor:
    """lambda at the start of a step: one for all, or of every particle (B,)."""
    if rule.plan.adaptive is None:
        return rule.plan.strengths[state.step]
    return state.strength.repeat_interleave(rule.num_particles)


def _strengthen(rule: Rule, state: State, after: Evaluation) -> tuple[Tensor, Strength]:
    """(lambda (P,) at the step's end, lambda of every particle at its start and end).

    An adaptive lambda comes from the rewards seen before the step; if there are none, from those after it.
    """
    plan, k = rule.plan, state.step
    if plan.adaptive is None:
        end = plan.strengths[k + 1]
        return torch.full_like(state.strength, end), (plan.strengths[k], end)
    reached = state.strength
    if after.value is not None:
        seen = state.particles.value
        values = (after.value if bool(seen[0].isnan()) else seen).reshape(state.log_weights.shape)
        reached = adaptive.next_strength(
            plan.adaptive, state.strength, state.log_weights, values, rule.looks_left[k]
        )
    return reached, (_held(rule, state), reached.repeat_interleave(rule.num_particles))


def _resample(
    rule: Rule, state: State, ess: Tensor, log_z: Tensor, generator: torch.Generator | None
) -> tuple[State, Tensor, Tensor]:
    """(the state after any resampling, ancestors (P, N), which populations (P,) were resampled).

    Args:
        log_z: log Z with the weights of ``state`` counted in.
    """
    how, log_weights = rule.resampling, state.log_weights
    if done := state.step == rule.plan.num_steps:
        due = torch.full_like(ess, how.final, dtype=torch.bool)
    elif how.steps is not None:
        due = torch.full_like(ess, state.step in how.steps, dtype=torch.bool)
    else:
        due = ess < (0.0 if how.scheme == "none" or rule.weights == "none" else how.threshold)
    ancestors = torch.arange(rule.num_particles, device=ess.device).expand_as(log_weights)
    if not bool(due.any()):
        return state._replace(log_z=log_z if done else state.log_z), ancestors, due
    mask, drawn = due[:, None], resampling.resample(how.scheme, log_weights, generator, how.share)
    ancestors = torch.where(mask, drawn.ancestors, ancestors)
    particles = smc.gather(state.particles, smc.flat_index(ancestors, rule.num_particles))
    log_weights = torch.where(mask, drawn.log_weights, log_weights)
    kept = torch.where(due | done, log_z, state.log_z)
    return State(state.step, particles, log_weights, kept, state.strength), ancestors, due


def _guidance_ratio(
    shift: Tensor | None, kernel: Kernel, x: Tensor, now: Evaluation, h: float, table: tuple[int, int]
) -> Tensor:
    """Root mean square of g over that of the unguided move, per population (P,)."""
    if shift is None:
        return torch.zeros(table[0], dtype=torch.float64, device=x.device)
    move = kernel.mean - x if now.velocity is None else h * now.velocity
    squares = [v.reshape(table[0], -1).double().square().sum(1) for v in (shift, move)]
    return (squares[0] / squares[1].clamp_min(1e-300)).sqrt()
