"""Flow Map Trajectory Tilting: exact reward-tilted sampling (arXiv 2511.22688).

Algorithm, for K steps on a grid t_0 < ... < t_K = 1:
    init    x ~ N(0, I), log w = 0
    step k  1. look ahead:  f = r(l_t(x)), its gradient and residual, from one reverse pass
            2. move:        x' ~ N(m + g, v I), m from the unguided SDE, g = eps h grad(lambda f)
            3. weigh:       log w += dA
            4. if the effective sample size is low: log Z += log mean w, resample, log w = 0
    end     log Z += log mean w
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.steering import dynamics, setup, smc
from fmtt.steering import lookahead as lookaheads
from fmtt.steering import rule as rules
from fmtt.steering import schedule as schedules
from fmtt.steering.dynamics import Evaluation, Problem
from fmtt.steering.result import History, TiltResult
from fmtt.steering.rule import Rule
from fmtt.types import Cond, FlowMap, Reward, VelocityField


class Particles(NamedTuple):
    """Everything that belongs to a particle; resampling gathers all of it.

    Attributes:
        x: (B, *D).
        evaluation: what is known at x.
        potential: lambda f (B,) at the last look-ahead, float64.
        gradient: grad f (B, *D) at the last look-ahead, or None.
        eve: (B,) initial particle within the population.
    """

    x: Tensor
    evaluation: Evaluation
    potential: Tensor
    gradient: Tensor | None
    eve: Tensor


class State(NamedTuple):
    """The sampler between steps: ``log_weights`` (P, N) and ``log_z`` (P,), float64."""

    step: int
    particles: Particles
    log_weights: Tensor
    log_z: Tensor


class Info(NamedTuple):
    """What one step reports; per population (P,), ``ancestors`` (P, N)."""

    t: float
    ess: Tensor
    log_z: Tensor
    work_variance: Tensor
    discrepancy: Tensor
    resampled: Tensor
    ancestors: Tensor


def init(problem: Problem, rule: Rule, x: Tensor) -> State:
    """The state before the first step, from particles x (P*N, *D)."""
    P, N = rule.num_populations, rule.num_particles
    evaluation = dynamics.evaluate(problem, x, rule.plan.times[0], rule.needs(0))
    zeros = torch.zeros(P, N, dtype=torch.float64, device=x.device)
    eve = torch.arange(N, device=x.device).repeat(P)
    particles = Particles(x, evaluation, zeros.reshape(-1), evaluation.gradient, eve)
    return State(0, particles, zeros, zeros[:, 0].clone())


def step(problem: Problem, rule: Rule, state: State, generator: torch.Generator | None) -> tuple[State, Info]:
    """Move, weigh and, where needed, resample all particles."""
    k, particles, now = state.step, state.particles, state.particles.evaluation
    t, t_next = rule.plan.times[k], rule.plan.times[k + 1]
    strength = rule.plan.strengths[k], rule.plan.strengths[k + 1]
    x, interpolant = particles.x, problem.interpolant
    kernel = dynamics.kernel(rule.kernel, interpolant, x, now, t, t_next, rule.plan.noises[k])
    noise = shift = None
    if rule.noisy(k):
        noise = smc.normal(tuple(x.shape), generator, x.device, x.dtype)
        if rule.guides and particles.gradient is not None and strength[0] != 0:
            shift = dynamics.shift_of(
                particles.gradient, kernel, t_next - t, strength[0], rule.guidance, rule.chi
            )
    x, log_ratio = dynamics.guided(kernel, shift, noise)
    after = dynamics.evaluate(problem, x, t_next, rule.needs(k + 1))

    potential = particles.potential if after.value is None else strength[1] * after.value
    if rule.weights == "exact":
        increment = dynamics.exact_increment(
            now, after, strength, t_next - t, deterministic=not rule.noisy(k)
        )
    elif rule.weights == "paper":
        increment = dynamics.paper_increment(now, after, strength)
    elif rule.weights == "path":
        increment = potential - particles.potential + log_ratio
    else:
        increment = torch.zeros_like(log_ratio)

    gradient = particles.gradient if after.gradient is None else after.gradient
    moved = Particles(x, after, potential, gradient, particles.eve)
    increment = increment.reshape(rule.num_populations, rule.num_particles)
    statistics = smc.increment_statistics(state.log_weights, increment)
    log_weights = state.log_weights + increment
    ess = smc.ess_fraction(log_weights)
    log_z = state.log_z + smc.log_mean_exp(log_weights)
    ancestors = torch.arange(rule.num_particles, device=x.device).expand_as(log_weights)
    resampled = ess < rule.threshold
    done = k + 1 == rule.plan.num_steps
    if done or not bool(resampled.any()):
        resampled = torch.zeros_like(resampled)
        new = State(k + 1, moved, log_weights, log_z if done else state.log_z)
    else:
        mask = resampled[:, None]
        ancestors = torch.where(mask, smc.systematic(log_weights, generator), ancestors)
        moved = smc.gather(moved, smc.flat_index(ancestors, rule.num_particles))
        log_weights = torch.where(mask, torch.zeros_like(log_weights), log_weights)
        new = State(k + 1, moved, log_weights, torch.where(resampled, log_z, state.log_z))
    return new, Info(
        t_next, ess, log_z, statistics.work_variance, statistics.discrepancy, resampled, ancestors
    )


@torch.inference_mode(False)
@torch.no_grad()
def tilt(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_particles: int,
    num_steps: int = 50,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    lookahead: str | lookaheads.Lookahead = "flow_map",
    lookahead_steps: int = 1,
    weights: str = "exact",
    schedule: str | schedules.Scalar = "linear",
    noise: float | schedules.Scalar = 1.0,
    guidance: float = 1.0,
    chi: float = 0.0,
    times: str | schedules.Scalar | Tensor = "uniform",
    gradient: str = "auto",
    gradient_every: int = 1,
    max_reward_calls: int | None = None,
    x_init: Tensor | None = None,
    t_start: float = 0.0,
    resample: str = "systematic",
    ess_threshold: float = 0.5,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
    kernel: str = "sde",
) -> TiltResult:
    """Sample from rho e^r / Z, the model's law tilted by a reward.

    Args:
        flow_map: the map; its velocity drives the particles unless ``velocity`` is given.
        reward: samples (B, *D) and cond to scores (B,).
        num_particles: N, per population.
        num_steps: K, steps of the time grid.
        cond: one row for all, or one row per population.
        lookahead: "flow_map", "denoiser", "euler", "none", or a Lookahead.
        lookahead_steps: k of the flow map's or Euler's look-ahead.
        weights: "exact" corrects for the look-ahead's error and takes the velocity as the model's own;
            "path" is exact for the discretised base process under any guidance; "paper" assumes an exact
            flow map and warns; "none" guides without weights.
        schedule: lambda(t) from 0 to 1, "linear" or a callable.
        noise: eps_t = noise * alpha_t, or a callable eps(t).
        guidance: multiplier of the reward's gradient; other than 1 needs weights="path" or "none".
        chi: extra gradient drift; other than 0 needs weights="path" or "none".
        times: "uniform", a callable bending [0, 1] onto itself, or the K + 1 times.
        gradient: "auto" uses the reward's gradient, "none" leaves it out.
        gradient_every: look ahead at every m-th step only and keep the gradient in between; needs
            weights="path" or "none".
        max_reward_calls: refuse to start if the run would score more samples than this.
        x_init, t_start: start from these states (1, N or P*N rows) at this time.
        resample: "systematic" or "none"; a population is resampled when its ESS fraction falls below
            ``ess_threshold``.
        chunk_size: particles per network call, to bound memory. Noise is drawn for all of them, so results
            agree up to the last bits in which a network's kernels depend on the batch.
        velocity: another velocity field for the particles, for instance the map's teacher.
        num_populations: P independent populations in one batch; the rows of ``cond`` if omitted.
        kernel: "sde", or "renoise" to jump to the look-ahead's endpoint and noise it again, which
            suits few steps and needs weights="path" or "none".

    Raises:
        UserError: when arguments contradict each other; the message names them.
    """
    plan = schedules.build(
        num_steps, flow_map.interpolant, times=times, schedule=schedule, noise=noise, t_start=t_start
    )
    field = flow_map.velocity if velocity is None else velocity
    start = setup.particles(
        flow_map, num_particles, num_populations, data_shape, cond, device, dtype, x_init, t_start, generator
    )
    ahead = lookaheads.build(lookahead, lookahead_steps, flow_map, field)
    rules.check_kernel(kernel, ahead)
    problem = Problem(
        field,
        flow_map.interpolant,
        ahead,
        reward,
        start.cond,
        chunk_size,
        start.cost,
    )
    guides = setup.uses_gradient(problem, start, gradient)
    rule = Rule(
        plan,
        weights,
        kernel,
        guides,
        guidance,
        chi,
        gradient_every,
        0.0 if resample == "none" or weights == "none" else ess_threshold,
        start.num_populations,
        num_particles,
    )
    rules.check(rule, resample, ess_threshold)
    looks = sum(rule.needs(k).value for k in range(plan.num_steps + 1))
    setup.check_reward_calls(max_reward_calls, start, looks * num_particles)

    with start.cost.measure(start.x.device):
        state = init(problem, rule, start.x)
        infos: list[Info] = []
        for _ in range(plan.num_steps):
            state, info = step(problem, rule, state, generator)
            infos.append(info)
    final = state.particles
    assert final.evaluation.value is not None
    single = start.num_populations == 1
    ess = infos[-1].ess
    return TiltResult(
        samples=final.x,
        log_weights=state.log_weights.reshape(-1),
        log_z=state.log_z[0] if single else state.log_z,
        ess=ess[0] if single else ess,
        rewards=final.evaluation.value.to(final.x.dtype),
        population=start.population,
        eve=final.eve,
        history=_history(infos),
        cost=start.cost,
        base_law=rules.base_law(rule, x_init is not None, t_start),
        num_populations=start.num_populations,
    )


def _history(infos: list[Info]) -> History:
    work = torch.stack([i.work_variance for i in infos])
    return History(
        t=torch.tensor([i.t for i in infos], dtype=torch.float64),
        ess=torch.stack([i.ess for i in infos]),
        log_z=torch.stack([i.log_z for i in infos]),
        work_variance=work,
        thermodynamic_length=work.sqrt().cumsum(0),
        total_discrepancy=torch.stack([i.discrepancy for i in infos]).cumsum(0),
        resampled=torch.stack([i.resampled for i in infos]),
        ancestors=torch.stack([i.ancestors for i in infos]).to(torch.int32),
    )
