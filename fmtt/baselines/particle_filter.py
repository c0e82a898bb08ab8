"""A particle filter over the discretised base SDE, with potentials from look-ahead rewards.

Step k moves x' ~ N(m + g, v I), where N(m, v I) is the base transition, and multiplies a particle's weight by
    G_k N(x'; m, v I) / N(x'; m + g, v I)
The last potential is e^{lambda r(x_1)} over the product of those before it: whatever they were, the weighted
particles are exact for the base law tilted by lambda r. Weights are kept from step to step until a population
is resampled, and resampling gathers all that a particle carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.baselines import record
from fmtt.steering import dynamics, smc
from fmtt.steering.dynamics import Evaluation, Needs, Problem
from fmtt.steering.result import TiltResult
from fmtt.steering.setup import Start
from fmtt.tensor import dot

Potential = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(lambda r of the look-ahead (B,), memory (B,)) to (log G (B,), new memory (B,)), all float64."""


class Particle(NamedTuple):
    """Everything that belongs to a particle.

    Attributes:
        x: (B, *D).
        now: what is known at x.
        reward: of the last look, (B,); nan before the first.
        memory: what the potential remembers of earlier rewards, (B,).
        product: log of the product of potentials so far, (B,).
        eve: initial particle within the population, (B,).
    """

    x: Tensor
    now: Evaluation
    reward: Tensor
    memory: Tensor
    product: Tensor
    eve: Tensor


@dataclass(frozen=True)
class Filter:
    """A filter's constants, for K steps.

    Attributes:
        times: K + 1 times. noises: eps of the K steps.
        strengths: lambda at the K + 1 times.
        looks: at which of the K + 1 times a potential is multiplied in; the last always is.
        memory: the potential's at the start.
        guidance: multiple of the shift g = v lambda grad r; the first step takes none.
        threshold: resample a population when its ESS fraction falls below it.
    """

    times: tuple[float, ...]
    noises: tuple[float, ...]
    strengths: tuple[float, ...]
    looks: tuple[bool, ...]
    potential: Potential
    memory: float
    guidance: float
    threshold: float

    def needs(self, k: int) -> Needs:
        """What has to be known of the particles at t_k."""
        K = len(self.noises)
        if k == K:
            return Needs(value=True)
        pulls = self.guidance != 0 and k > 0 and self.noises[k] > 0 and self.strengths[k + 1] != 0
        return Needs(velocity=True, value=pulls or (k > 0 and self.looks[k]), gradient=pulls)

    def run(self, problem: Problem, start: Start, law: str, generator: torch.Generator | None) -> TiltResult:
        """Carry the particles of ``start`` from t_0 to 1."""
        P, K, device = start.num_populations, len(self.noises), start.x.device
        N = len(start.x) // P
        log_weights = torch.zeros(P, N, dtype=torch.float64, device=device)
        log_z, zero = log_weights[:, 0].clone(), log_weights.reshape(-1)
        eve = torch.arange(N, device=device).repeat(P)
        rows: list[record.Row] = []
        with start.cost.measure(device):
            now = dynamics.evaluate(problem, start.x, self.times[0], self.needs(0))
            unseen = torch.full_like(zero, math.nan)
            particle = Particle(start.x, now, unseen, torch.full_like(zero, self.memory), zero, eve)
            for k in range(K):
                particle, increment, pull = self.move(problem, particle, k, generator)
                increment = increment.reshape(P, N)
                statistics = smc.increment_statistics(log_weights, increment)
                log_weights = log_weights + increment
                ess, estimate = smc.ess_fraction(log_weights), log_z + smc.log_mean_exp(log_weights)
                rewards = particle.reward.reshape(P, N)
                mean = (torch.softmax(log_weights, 1) * rewards).sum(1)
                ancestors = torch.arange(N, device=device).expand(P, N)
                resampled = (ess < self.threshold) & (self.looks[k + 1] and k + 1 < K)
                if bool(resampled.any()):
                    mask = resampled[:, None]
                    ancestors = torch.where(mask, smc.systematic(log_weights, generator), ancestors)
                    particle = smc.gather(particle, smc.flat_index(ancestors, N))
                    log_weights = log_weights.masked_fill(mask, 0.0)
                    log_z = torch.where(resampled, estimate, log_z)
                size, of = pull.reshape(P, N, 2).sum(1).unbind(1)
                row = record.Row(
                    t=self.times[k + 1],
                    ess=ess,
                    log_z=estimate,
                    work_variance=statistics.work_variance,
                    length=statistics.length,
                    discrepancy=statistics.discrepancy,
                    resampled=resampled,
                    ancestors=ancestors.to(torch.int32),
                    strength=torch.full_like(ess, self.strengths[k + 1]),
                    mean_reward=mean,
                    best_reward=rewards.amax(1),
                    guidance_ratio=(size / of.clamp_min(1e-300)).sqrt(),
                )
                rows.append(row)
        return record.weighted(start, particle.x, particle.reward, log_weights, particle.eve, rows, law)

    def move(
        self, problem: Problem, particle: Particle, k: int, generator: torch.Generator | None
    ) -> tuple[Particle, Tensor, Tensor]:
        """One step: particles, log-weight increments (B,), squared norms of g and of the flow step (B, 2)."""
        x, now, strength = particle.x, particle.now, self.strengths[k + 1]
        t, t_next, eps = self.times[k], self.times[k + 1], self.noises[k]
        kernel = dynamics.kernel("sde", problem.interpolant, x, now, t, t_next, eps)
        noise = smc.normal(tuple(x.shape), generator, x.device, x.dtype) if eps > 0 else None
        shift, pull = None, torch.zeros(len(x), 2, dtype=torch.float64, device=x.device)
        if now.gradient is not None:
            assert now.velocity is not None
            shift = (self.guidance * kernel.variance * strength) * now.gradient
            pull = torch.stack([dot(v, v).double() for v in (shift, (t_next - t) * now.velocity)], 1)
        x, increment = dynamics.guided(kernel, shift, noise)
        after = dynamics.evaluate(problem, x, t_next, self.needs(k + 1))
        reward, memory, product = particle.reward, particle.memory, particle.product
        if k + 1 == len(self.noises) or self.looks[k + 1]:
            assert after.value is not None
            reward = after.value
            if k + 1 == len(self.noises):
                log_potential = strength * reward - product
            else:
                log_potential, memory = self.potential(strength * reward, memory)
            product, increment = product + log_potential, increment + log_potential
        return Particle(x, after, reward, memory, product, particle.eve), increment, pull
