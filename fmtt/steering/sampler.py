"""Flow Map Trajectory Tilting: the state of a run and its step (arXiv 2511.22688).

Algorithm, for K steps on a grid t_0 < ... < t_K = 1:
    init    x ~ N(0, I), log w = 0
    step k  1. look ahead:  f = r(l_t(x)), its gradient and residual, from one reverse pass
            2. move:        x' ~ N(m + g, v I), m from the unguided SDE, g = eps h grad(lambda f)
            3. strengthen:  lambda' from the plan, or from the weights and the last f
            4. weigh:       log w += dA
            5. if due:      log Z += log mean w, resample, log w = 0
    end     log Z += log mean w
Each of several processes holds a share of the particles and all log-weights (fmtt/steering/ranks.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.steering import adaptive, dynamics, resampling, smc
from fmtt.steering.dynamics import Evaluation, Kernel, Problem
from fmtt.steering.ranks import Ranks
from fmtt.steering.rule import Rule
from fmtt.steering.weights import Strength


class Particles(NamedTuple):
    """Everything that belongs to a particle, of this rank's B; resampling gathers all of it.

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
    """The state before the first step, from this rank's particles x (B, *D) of P*N."""
    P, N, ranks = rule.num_populations, rule.num_particles, problem.ranks
    evaluation = dynamics.evaluate(
        problem, x, rule.plan.times[0], rule.needs(0), generator=generator, total=P * N
    )
    zeros = torch.zeros(P, N, dtype=torch.float64, device=x.device)
    flat = ranks.share(zeros.reshape(-1))
    value = torch.full_like(flat, float("nan")) if evaluation.value is None else evaluation.value
    eve = ranks.share(torch.arange(N, device=x.device).repeat(P))
    particles = Particles(x, evaluation, flat, value, evaluation.gradient, eve)
    return State(0, particles, zeros, zeros[:, 0].clone(), zeros[:, 0].clone())


def step(problem: Problem, rule: Rule, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
    """Move, weigh and, where due, resample all particles."""
    k, ranks = state.step, problem.ranks
    table = (rule.num_populations, rule.num_particles)
    total = rule.num_populations * rule.num_particles
    t_next = rule.plan.times[k + 1]
    x, log_ratio, sizes = _move(problem, rule, state, generator)
    state = _moved(rule, state)
    particles, now = state.particles, state.particles.evaluation
    after = dynamics.evaluate(problem, x, t_next, rule.needs(k + 1), generator=generator, total=total)

    reached, strength = _strengthen(ranks, rule, state, after)
    potential, value = particles.potential, particles.value
    if after.value is not None:
        potential, value = strength[1] * after.value, after.value
    if rule.weights == "exact":
        increment = dynamics.exact_increment(
            now,
            after,
            strength,
            t_next - rule.plan.times[k],
            deterministic=not rule.noisy(k),
            chi=rule.drifts[k],
        )
    elif rule.weights == "paper":
        increment = dynamics.paper_increment(now, after, strength)
    elif rule.weights == "path":
        increment = potential - particles.potential + log_ratio
    else:
        increment = torch.zeros_like(log_ratio)

    gradient = particles.gradient if after.gradient is None else after.gradient
    moved = Particles(x, after, potential, value, gradient, particles.eve)
    columns = ranks.gather(torch.stack([increment, value, *sizes], 1), total)
    increment, rewards, guided, unguided = (column.reshape(table) for column in columns.unbind(1))
    statistics = smc.increment_statistics(state.log_weights, increment)
    log_weights = state.log_weights + increment
    ess = ranks.same(smc.ess_fraction(log_weights))
    log_z = state.log_z + smc.log_mean_exp(log_weights)
    mean_reward = (torch.softmax(log_weights, 1) * rewards).sum(1)
    ratio = (guided.sum(1) / unguided.sum(1).clamp_min(1e-300)).sqrt()
    new = State(k + 1, moved, log_weights, state.log_z, reached)
    new, ancestors, resampled = _resample(ranks, rule, new, ess, log_z, generator)
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


def _move(
    problem: Problem, rule: Rule, state: State, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """x' (B, *D), its log density ratio (B,), and the squared lengths (B,) of guidance and unguided move.

    All else that a move computes is gone before the look-ahead, which needs the memory.
    """
    k, particles, now, ranks = state.step, state.particles, state.particles.evaluation, problem.ranks
    x, t, t_next = particles.x, rule.plan.times[k], rule.plan.times[k + 1]
    kernel = dynamics.kernel(rule.kernel, problem.interpolant, x, now, t, t_next, rule.plan.noises[k])
    noise = shift = None
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    sizes = zero, zero
    if rule.noisy(k):
        shape = (state.log_weights.numel(), *x.shape[1:])
        noise = ranks.share(smc.normal(shape, generator, x.device, x.dtype))
        if rule.guides and particles.gradient is not None and rule.active(k):
            held = _held(ranks, rule, state)
            h, chi = t_next - t, rule.drifts[k]
            shift = dynamics.shift_of(particles.gradient, kernel, h, held, rule.guidance, chi, rule.step_size)
            sizes = shift.length_squared, _unguided(kernel, x, now, t_next - t)
    moved, log_ratio = dynamics.guided(kernel, shift, noise)
    return moved, log_ratio, sizes


def _moved(rule: Rule, state: State) -> State:
    """The state without what nobody asks for once the particles have moved on, which frees its memory."""
    k, particles = state.step, state.particles
    now = particles.evaluation._replace(velocity=None, endpoint=None)
    if rule.drifts[k] == 0:
        now = now._replace(gradient=None)
    particles = particles._replace(x=particles.x.new_empty(0), evaluation=now)
    if rule.needs(k + 1).gradient:
        particles = particles._replace(gradient=None)
    return state._replace(particles=particles)


def _held(ranks: Ranks, rule: Rule, state: State) -> float | Tensor:
    """lambda at the start of a step: one for all, or of every particle (B,)."""
    if rule.plan.adaptive is None:
        return rule.plan.strengths[state.step]
    return ranks.share(state.strength.repeat_interleave(rule.num_particles))


def _strengthen(ranks: Ranks, rule: Rule, state: State, after: Evaluation) -> tuple[Tensor, Strength]:
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
        values = after.value if bool(seen[0].isnan()) else seen
        values = ranks.gather(values, state.log_weights.numel()).reshape(state.log_weights.shape)
        reached = ranks.same(
            adaptive.next_strength(
                plan.adaptive, state.strength, state.log_weights, values, rule.looks_left[k]
            )
        )
    end = ranks.share(reached.repeat_interleave(rule.num_particles))
    return reached, (_held(ranks, rule, state), end)


def _resample(
    ranks: Ranks,
    rule: Rule,
    state: State,
    ess: Tensor,
    log_z: Tensor,
    generator: torch.Generator | None,
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
    ancestors = ranks.same(torch.where(mask, drawn.ancestors, ancestors))
    index = smc.flat_index(ancestors, rule.num_particles)
    particles = ranks.exchange(state.particles, index, len(index))
    log_weights = ranks.same(torch.where(mask, drawn.log_weights, log_weights))
    kept = torch.where(due | done, log_z, state.log_z)
    return State(state.step, particles, log_weights, kept, state.strength), ancestors, due


def _unguided(kernel: Kernel, x: Tensor, now: Evaluation, h: float) -> Tensor:
    """Squared length (B,) of the move without guidance and, where the velocity is known, without noise."""
    move, scale = (kernel.mean - x, 1.0) if now.velocity is None else (now.velocity, h)
    return (scale * torch.linalg.vector_norm(move.flatten(1), dim=1).double()).square()
