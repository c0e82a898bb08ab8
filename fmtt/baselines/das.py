"""DAS: tempered twisted sequential Monte Carlo with a denoiser look-ahead (arXiv 2501.05803).

The intermediate targets are the base law at t_k times e^{lambda_k r(D_k(x))}, with lambda rising to 1. The
proposal follows the gradient, x' ~ N(m + g, v I) with g = v lambda_{k+1} grad r(D_k(x)), and the weights are
those of twisted SMC (equation 14 there):
    w = e^{lambda_{k+1} r(D_{k+1}(x')) - lambda_k r(D_k(x))} N(x'; m, v I) / N(x'; m + g, v I)
The temperature follows the paper's lambda_k = min((1 + gamma)^k - 1, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.baselines import parts
from fmtt.baselines.fk_steering import difference
from fmtt.baselines.particle_filter import Filter
from fmtt.errors import UserError
from fmtt.steering import schedule as schedules
from fmtt.steering import setup
from fmtt.steering.lookahead import DenoiserLookahead
from fmtt.steering.result import TiltResult
from fmtt.types import Cond, FlowMap, Reward, VelocityField


def temper(num_steps: int, gamma: float | None = None) -> tuple[float, ...]:
    """lambda_k = min((1 + gamma)^k - 1, 1) for k = 0 to K; gamma = 2^{1/K} - 1 reaches 1 at the end.

    Raises:
        UserError: when gamma is not positive.
    """
    if gamma is not None and not gamma > 0:
        raise UserError(f"gamma must be positive, got {gamma:g}")
    growth = 2 ** (1 / num_steps) if gamma is None else 1 + gamma
    values = [min(growth**k - 1, 1.0) for k in range(num_steps)]
    return (*values, 1.0)


@torch.inference_mode(False)
@torch.no_grad()
def das(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_particles: int,
    num_steps: int = 50,
    gamma: float | None = None,
    guidance: float = 1.0,
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
    """Sample from the base SDE's law tilted by the reward.

    Args:
        num_particles: N per population. The cost is N * (3 * num_steps - 4) network passes: the first step is
            not tempered up yet and the last draws no noise, so neither takes a gradient.
        gamma: growth of the temperature; if omitted it is such that lambda reaches 1 at the end.
        guidance: multiple of the proposal's shift; 0 proposes from the base SDE. Weights are exact for any.
        ess_threshold: resample a population when its ESS fraction falls below.
        velocity: another velocity field for the particles, for instance the map's teacher.
        num_populations: P independent populations in one batch; the rows of ``cond`` if omitted.

    Returns:
        Weighted particles, exact at any number of steps for the law that ``base_law`` names.

    Raises:
        UserError: when arguments contradict each other or the reward has no gradient.
    """
    if not 0 <= ess_threshold <= 1:
        raise UserError(f"ess_threshold must lie in [0, 1], got {ess_threshold:g}")
    plan = schedules.build(num_steps, flow_map.interpolant, noise=noise, times=times)
    K = plan.num_steps
    strengths = temper(K, gamma)
    start = setup.particles(
        flow_map, num_particles, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    ahead = DenoiserLookahead(flow_map.interpolant)
    problem = parts.problem(flow_map, reward, start, ahead, chunk_size, velocity)
    if guidance != 0:
        parts.check_gradient(problem, start, "das")
    filter = Filter(
        plan.times, plan.noises, strengths, (True,) * (K + 1), difference, 0.0, guidance, ess_threshold
    )
    law = (
        f"Exact at any number of steps for the law at t=1 of the {K}-step discretised SDE of the sampler's "
        "velocity, started from N(0, I) at t=0."
    )
    return filter.run(problem, start, law, generator)
