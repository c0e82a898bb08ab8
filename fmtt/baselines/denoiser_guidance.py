"""Denoiser guidance: diffusion posterior sampling (arXiv 2209.14687, equations 11 and 16) for any reward.

The score of the tilted law at time t is s + grad log E[e^{r(x_1)} | x_t = x]; DPS puts the mean inside,
grad_x r(D_t(x)), and differentiates through the denoiser. As b = (beta' x + W alpha s) / beta, the guided
process is
    dx = [b + eps s + (W alpha / beta + eps) grad r(D_t(x))] dt + sqrt(2 eps) dW
The first step is not guided: there a denoiser sees the same in every noise, and the weight is infinite.
It samples the tilted law only as far as r is linear over the posterior of x_1; nothing is weighted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.baselines import parts
from fmtt.steering import dynamics, setup, smc
from fmtt.steering import schedule as schedules
from fmtt.steering.dynamics import Needs
from fmtt.steering.lookahead import DenoiserLookahead
from fmtt.steering.result import SearchResult
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, Reward, VelocityField

NO_LAW = "None: unweighted samples of a process guided through the denoiser."
STEP_SIZES = ("posterior", "normalized")


@torch.inference_mode(False)
@torch.no_grad()
def denoiser_guidance(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_samples: int,
    num_steps: int = 50,
    guidance: float = 1.0,
    step_size: str = "posterior",
    noise: float | schedules.Scalar = 1.0,
    times: str | schedules.Scalar | Tensor = "uniform",
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
) -> SearchResult:
    """Sample under guidance by the reward of the denoised state.

    Args:
        num_samples: N guided samples per population. The cost is N * (3 * num_steps - 4) network passes: the
            gradient goes through the velocity of every step but the first and the last.
        guidance: multiplier of the gradient; 1 is the posterior's own under step_size="posterior".
        step_size: "posterior", the weight above; or "normalized", a shift of ``guidance`` times the length of
            the unguided step in the gradient's direction, whatever the reward's scale (the paper, too,
            divides its step by the residual's norm).
        noise: eps_t = noise * alpha_t, or a callable eps(t); 0 guides the probability-flow ODE.
        velocity: another velocity field, for instance the map's teacher.
        num_populations: independent repetitions; the rows of ``cond`` if omitted.

    Raises:
        UserError: when arguments contradict each other or the reward has no gradient.
    """
    parts.check_choice("step_size", step_size, STEP_SIZES)
    plan = schedules.build(num_steps, flow_map.interpolant, noise=noise, times=times)
    start = setup.particles(
        flow_map, num_samples, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    ahead = DenoiserLookahead(flow_map.interpolant)
    problem = parts.problem(flow_map, reward, start, ahead, chunk_size, velocity)
    guides = guidance != 0
    if guides:
        parts.check_gradient(problem, start, "denoiser_guidance")
    x = start.x
    with start.cost.measure(x.device):
        for k in range(plan.num_steps):
            t, t_next, eps = plan.times[k], plan.times[k + 1], plan.noises[k]
            pulls = guides and 0 < k < plan.num_steps - 1
            now = dynamics.evaluate(problem, x, t, Needs(velocity=True, gradient=pulls))
            kernel = dynamics.kernel("sde", flow_map.interpolant, x, now, t, t_next, eps)
            if now.gradient is not None:
                if step_size == "posterior":
                    c = flow_map.interpolant.coefficients(t, x)
                    shift = (t_next - t) * (c.wronskian * c.alpha / c.beta + eps) * now.gradient
                else:
                    shift = unit(now.gradient) * length(kernel.mean - x)
                kernel = kernel._replace(mean=kernel.mean + guidance * shift)
            draw = smc.normal(tuple(x.shape), generator, x.device, x.dtype) if eps > 0 else None
            x, _ = dynamics.guided(kernel, None, draw)
        rewards = parts.final_rewards(problem, x, start.cond)
    return parts.unweighted(start, x, rewards, NO_LAW)


def length(x: Tensor) -> Tensor:
    """The norm of each sample (B, *D), shaped (B, 1, ...)."""
    return expand_like(x.flatten(1).norm(dim=1), x)


def unit(x: Tensor) -> Tensor:
    """Each sample (B, *D) divided by its norm; 0 where it is 0."""
    return x / length(x).clamp_min(torch.finfo(x.dtype).tiny)
