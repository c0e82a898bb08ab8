"""Best of N: draw N samples, return the one of highest reward. The baseline every method must beat."""

from __future__ import annotations

import torch

from fmtt.baselines import parts
from fmtt.errors import UserError
from fmtt.steering import dynamics, setup, smc
from fmtt.steering import lookahead as lookaheads
from fmtt.steering import schedule as schedules
from fmtt.steering.dynamics import Needs
from fmtt.steering.result import SearchResult
from fmtt.types import Cond, FlowMap, Reward, VelocityField

NO_LAW = "None: the best of N samples follows no stated law."
SAMPLERS = ("flow_map", "velocity")


@torch.inference_mode(False)
@torch.no_grad()
def best_of_n(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_samples: int,
    steps: int = 4,
    sampler: str = "flow_map",
    noise: float | schedules.Scalar = 0.0,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
) -> SearchResult:
    """Draw N samples per population and score them; ``result.best`` is the baseline's answer.

    Args:
        num_samples: N per population. The cost is N * steps network passes.
        steps: steps of the sampler on a uniform grid.
        sampler: "flow_map" (map steps) or "velocity" (steps of the velocity's ODE, or SDE if noise > 0).
        noise: eps_t = noise * alpha_t of the velocity sampler; 0 is the probability-flow ODE.
        velocity: another velocity field for sampler="velocity".
        num_populations: independent repetitions; the rows of ``cond`` if omitted.

    Raises:
        UserError: when arguments contradict each other.
    """
    parts.check_choice("sampler", sampler, SAMPLERS)
    if sampler == "flow_map" and noise != 0:
        raise UserError("noise belongs to sampler='velocity'; a flow map's steps draw none")
    plan = schedules.build(steps, flow_map.interpolant, noise=noise)
    start = setup.particles(
        flow_map, num_samples, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    problem = parts.problem(flow_map, reward, start, lookaheads.NoLookahead(), chunk_size, velocity)
    x = start.x
    with start.cost.measure(x.device):
        for k in range(steps):
            t, t_next = plan.times[k], plan.times[k + 1]
            if sampler == "flow_map":
                x = dynamics.advance(problem, flow_map, x, t, t_next, start.cond)
                continue
            now = dynamics.evaluate(problem, x, t, Needs(velocity=True))
            kernel = dynamics.kernel("sde", flow_map.interpolant, x, now, t, t_next, plan.noises[k])
            draw = smc.normal(tuple(x.shape), generator, x.device, x.dtype) if plan.noises[k] > 0 else None
            x, _ = dynamics.guided(kernel, None, draw)
        rewards = parts.final_rewards(problem, x, start.cond)
    return parts.unweighted(start, x, rewards, NO_LAW)
