"""The bias that the paper's weights would incur: the same particles, weighed by both rules.

The paper's increment lambda' r dt leaves out lambda (d/dt f + b . grad f) dt, the residual of the look-ahead
along the flow, which is zero for an exact map. Without resampling both rules move the particles alike, so
their log-weights are compared particle by particle.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fmtt.steering.lookahead import FlowMapLookahead
from fmtt.steering.smc import log_mean_exp
from fmtt.steering.tilt import tilt
from fmtt.types import Cond, FlowMap, Reward, VelocityField


class Paired(NamedTuple):
    """A difference paper - exact, its standard error over populations, and what it compares with.

    Attributes:
        exact: the value under the exact weights.
        values: per population, (P,).
    """

    difference: float
    standard_error: float
    exact: float
    values: tuple[float, ...]

    @property
    def significance(self) -> float:
        """The difference in standard errors; 0 where there is none at all."""
        if self.difference == 0:
            return 0.0
        return abs(self.difference) / max(self.standard_error, 1e-300)


class PaperBias(NamedTuple):
    """What the paper's weights get wrong on this map and reward.

    Attributes:
        reward: E[r] under the tilted law.
        log_z: log E[e^r].
        gap: root mean square over particles of the difference of log-weights about its mean, nats.
        reward_spread: standard deviation of r over the guided particles, reward units.
        ess: mean effective sample size (fraction) under the exact weights.
        particles, populations, steps: of the run.
    """

    reward: Paired
    log_z: Paired
    gap: float
    reward_spread: float
    ess: float
    particles: int
    populations: int
    steps: int

    @property
    def significance(self) -> float:
        """Of the more significant of the two differences."""
        return max(self.reward.significance, self.log_z.significance)


def _paired(paper: Tensor, exact: Tensor) -> Paired:
    difference = paper - exact
    error = float(difference.std()) / math.sqrt(len(difference))
    return Paired(float(difference.mean()), error, float(exact.mean()), tuple(difference.tolist()))


def paper_bias(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_particles: int,
    num_populations: int = 16,
    num_steps: int = 50,
    velocity: VelocityField | None = None,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    noise: float = 1.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> PaperBias:
    """Tilt twice with the same random numbers, by exact and by the paper's weights, and compare.

    Args:
        cond: one row.
    """
    source = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=source))

    field = flow_map.velocity if velocity is None else velocity

    # Only one of the rules differentiates in t. Times of each particle's own keep a network from computing
    # otherwise in the other, where all have one in common.
    def jump(x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return flow_map(x, s.clone(), t.clone(), cond)

    def own_field(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return field(x, t.clone(), cond)

    def run(weights: str) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights="paper" warns, as it should
            result = tilt(
                flow_map,
                reward,
                num_particles=num_particles,
                num_populations=num_populations,
                num_steps=num_steps,
                data_shape=data_shape,
                cond=cond,
                device=device,
                dtype=dtype,
                weights=weights,
                noise=noise,
                resample="none",
                chunk_size=chunk_size,
                velocity=cast(VelocityField, own_field),
                lookahead=FlowMapLookahead(cast(FlowMap, jump)),
                generator=torch.Generator(source).manual_seed(seed),
            )
        shape = num_populations, num_particles
        return result.log_weights.reshape(shape), result.rewards.double().reshape(shape)

    exact, rewards = run("exact")
    paper, same = run("paper")
    if not torch.equal(rewards, same):
        raise RuntimeError("both weight rules must see the same particles; the reward or the map is random")
    means = [(torch.softmax(w, 1) * rewards).sum(1) for w in (paper, exact)]
    gap = paper - exact
    share = torch.softmax(exact, 1)
    return PaperBias(
        reward=_paired(*means),
        log_z=_paired(log_mean_exp(paper), log_mean_exp(exact)),
        gap=float((gap - gap.mean()).square().mean().sqrt()),
        reward_spread=float(rewards.std()),
        ess=float((1 / share.square().sum(1)).mean()) / num_particles,
        particles=num_particles,
        populations=num_populations,
        steps=num_steps,
    )
