"""Feynman-Kac steering: particles of the base SDE, weighted and resampled by potentials (arXiv 2501.06848).

With R_k = strength * r(look-ahead of x_k) at the times that are looked at, the potentials are
    difference  G_k = e^{R_k - R_{k-1}}, R before the first look is 0
    max         G_k = e^{max(R_1, ..., R_k)}
    sum         G_k = e^{R_1 + ... + R_k}
    final       G_k = 1: importance sampling at the end, without resampling on the way
and the last one is e^{strength r(x_1)} over the product of all before it. The product of all potentials is
therefore e^{strength r(x_1)} under each of the four, and the weighted particles have one and the same target,
base law * e^{strength r}; a choice of potential changes the variance only. (For the difference that is a
telescoping sum; max and sum need the division, without which they would target their own path functional.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmtt.baselines import parts
from fmtt.baselines.particle_filter import Filter, Potential
from fmtt.errors import UserError
from fmtt.steering import lookahead as lookaheads
from fmtt.steering import schedule as schedules
from fmtt.steering import setup
from fmtt.steering.result import TiltResult
from fmtt.types import Cond, FlowMap, Reward, VelocityField


def difference(value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """e^{R_k - R_{k-1}}; remembers R_k."""
    return value - memory, value


def highest(value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """e^{max of R so far}; remembers it."""
    highest = torch.maximum(value, memory)
    return highest, highest


def total(value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """e^{sum of R so far}; remembers it."""
    return memory + value, memory + value


def final(value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """1."""
    return torch.zeros_like(value), memory


POTENTIALS: dict[str, tuple[Potential, float]] = {
    "difference": (difference, 0.0),
    "max": (highest, -math.inf),
    "sum": (total, 0.0),
    "final": (final, 0.0),
}
"""Each potential and what it remembers at the start."""


@torch.inference_mode(False)
@torch.no_grad()
def fk_steering(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_particles: int,
    num_steps: int = 50,
    potential: str = "max",
    strength: float = 1.0,
    every: int = 1,
    lookahead: str | lookaheads.Lookahead = "denoiser",
    lookahead_steps: int = 1,
    guidance: float = 0.0,
    noise: float | schedules.Scalar = 1.0,
    times: str | schedules.Scalar | Tensor = "uniform",
    ess_threshold: float = 0.5,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
) -> TiltResult:
    """Sample from the base SDE's law tilted by ``strength`` times the reward.

    Args:
        num_particles: N per population. The cost is N * num_steps network passes with the denoiser, which is
            the velocity's own network call; another look-ahead adds its passes at every look.
        potential: "difference", "max", "sum" or "final".
        strength: the paper's lambda.
        every: steps between looks, and so between resamplings.
        lookahead, lookahead_steps: as in :func:`fmtt.tilt`.
        guidance: 0 proposes from the base SDE, as the paper does for images; otherwise the proposal's
            mean is shifted by guidance * variance * strength * grad r, and its density ratio is weighed.
        ess_threshold: resample when the ESS fraction falls below; 1 resamples at every look.
        velocity: another velocity field for the particles, for instance the map's teacher.
        num_populations: P independent populations in one batch; the rows of ``cond`` if omitted.

    Returns:
        Weighted particles, exact at any number of steps for the law that ``base_law`` names;
        ``log_z`` estimates log E[e^{strength r}] under it.

    Raises:
        UserError: when arguments contradict each other.
    """
    parts.check_choice("potential", potential, tuple(POTENTIALS))
    parts.check_count("every", every)
    if not math.isfinite(strength):
        raise UserError(f"strength must be finite, got {strength:g}")
    if not 0 <= ess_threshold <= 1:
        raise UserError(f"ess_threshold must lie in [0, 1], got {ess_threshold:g}")
    plan = schedules.build(num_steps, flow_map.interpolant, noise=noise, times=times)
    start = setup.particles(
        flow_map, num_particles, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    field = flow_map.velocity if velocity is None else velocity
    ahead = lookaheads.build(lookahead, lookahead_steps, flow_map, field)
    problem = parts.problem(flow_map, reward, start, ahead, chunk_size, field)
    if guidance != 0:
        parts.check_gradient(problem, start, "fk_steering with guidance")
    K = plan.num_steps
    function, memory = POTENTIALS[potential]
    looks = tuple(k == K or (k % every == 0 and potential != "final") for k in range(K + 1))
    filter = Filter(
        plan.times, plan.noises, (strength,) * (K + 1), looks, function, memory, guidance, ess_threshold
    )
    law = (
        f"Exact at any number of steps for the law at t=1 of the {K}-step discretised SDE of the sampler's "
        f"velocity, started from N(0, I) at t=0, tilted by {strength:g} times the reward."
    )
    return filter.run(problem, start, law, generator)
