"""ReNO: gradient ascent on the initial noise through a few-step map (arXiv 2406.04312, section 3).

Maximises r(X_{0,1}(x_0)) - w K(x_0), where -K is the log-density of a standard normal's norm in d dimensions,
K(x) = |x|^2 / 2 - (d - 1) log |x|, so that the noise stays as long as noise is. Nesterov momentum,
gradients clipped per sample, and the iterate of highest reward is what is returned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmtt.baselines import parts
from fmtt.errors import UserError
from fmtt.steering import dynamics, setup
from fmtt.steering.dynamics import Needs
from fmtt.steering.lookahead import FlowMapLookahead
from fmtt.steering.result import SearchResult
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, Reward

NO_LAW = "None: optimised noise follows no stated law."
MOMENTUM = 0.9


@torch.inference_mode(False)
@torch.no_grad()
def reno(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_samples: int = 1,
    iterations: int = 50,
    steps: int = 1,
    learning_rate: float = 5.0,
    norm_weight: float = 0.01,
    clip: float = 0.1,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
) -> SearchResult:
    """Optimise N initial noises per population; the defaults are the paper's.

    Args:
        num_samples: N independent starts per population. The cost is N * steps * (3 * iterations - 2) network
            passes: every iterate but the last is differentiated.
        iterations: iterates that are looked at, the start included; 1 is best-of-N.
        steps: map steps from noise to sample, all differentiated through.
        learning_rate: of the ascent, in units of the noise's standard deviation.
        norm_weight: w; 0 leaves the regulariser out.
        clip: largest norm of a sample's gradient; math.inf does not clip.
        num_populations: independent repetitions; the rows of ``cond`` if omitted.

    Returns:
        Every start's best iterate; ``history`` has a row per iterate.

    Raises:
        UserError: when an argument is out of range or the reward has no gradient.
    """
    for name, count in (("iterations", iterations), ("steps", steps)):
        parts.check_count(name, count)
    for name, positive in (("learning_rate", learning_rate), ("clip", clip)):
        if not positive > 0:
            raise UserError(f"{name} must be positive, got {positive:g}")
    if not 0 <= norm_weight < math.inf:
        raise UserError(f"norm_weight must be finite and not negative, got {norm_weight:g}")
    start = setup.particles(
        flow_map, num_samples, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    problem = parts.problem(flow_map, reward, start, FlowMapLookahead(flow_map, steps), chunk_size)
    if iterations > 1:
        parts.check_gradient(problem, start, "reno")

    noise, speed = start.x, torch.zeros_like(start.x)
    best = torch.empty_like(noise)
    best_rewards = torch.full_like(start.population, -math.inf, dtype=torch.float64)
    seen: list[parts.Round] = []
    with start.cost.measure(noise.device):
        for i in range(iterations):
            ascends = i + 1 < iterations
            now = dynamics.evaluate(problem, noise, 0.0, Needs(value=True, gradient=ascends, endpoint=True))
            assert now.value is not None and now.endpoint is not None
            better = now.value > best_rewards
            best = torch.where(expand_like(better, best), now.endpoint, best)
            best_rewards = torch.where(better, now.value, best_rewards)
            seen.append(parts.Round(1.0, now.value))
            if ascends:
                assert now.gradient is not None
                ascent = clipped(now.gradient - norm_weight * norm_gradient(noise), clip)
                speed = MOMENTUM * speed + ascent
                noise = noise + learning_rate * (ascent + MOMENTUM * speed)
    return parts.unweighted(start, best, best_rewards, NO_LAW, seen)


def norm_gradient(x: Tensor) -> Tensor:
    """The gradient of K(x) = |x|^2 / 2 - (d - 1) log |x| per sample, (B, *D)."""
    squared = expand_like(x.flatten(1).square().sum(1), x)
    d = x[0].numel()
    return x * (1 - (d - 1) / squared.clamp_min(torch.finfo(x.dtype).tiny))


def clipped(gradient: Tensor, clip: float) -> Tensor:
    """Each sample's gradient (B, *D), shortened to norm ``clip`` where it is longer."""
    norm = expand_like(gradient.flatten(1).norm(dim=1), gradient)
    return gradient * (clip / norm.clamp_min(torch.finfo(gradient.dtype).tiny)).clamp_max(1.0)
