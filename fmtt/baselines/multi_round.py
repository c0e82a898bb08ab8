"""Multi-round best-of-N: keep the best samples, noise them part of the way back, regenerate, repeat.

The search near good samples of arXiv 2501.09732 (section 3) with SDEdit's re-noising (arXiv 2108.01073),
x_t = alpha_t z + beta_t x_1 for fresh z; a few-step flow map regenerates.

Algorithm, for R rounds of N candidates:
    round 1  N few-step samples from fresh noise
    round j  1. keep the k of highest reward
             2. N - k copies of them, noised back: x_t = alpha_t z + beta_t x_1, z ~ N(0, I)
             3. regenerate X_{t,1} in a few map steps and score; the k kept ones stay as they are
"""

from __future__ import annotations

import torch

from fmtt.baselines import parts
from fmtt.errors import UserError
from fmtt.steering import dynamics, setup, smc
from fmtt.steering.lookahead import NoLookahead
from fmtt.steering.result import SearchResult
from fmtt.steering.schedule import time_grid
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, Reward

NO_LAW = "None: the best of several rounds of noising and regenerating follow no stated law."


@torch.inference_mode(False)
@torch.no_grad()
def multi_round(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_samples: int,
    rounds: int,
    keep: int = 1,
    steps: int = 4,
    t_back: float = 0.5,
    regenerate_steps: int = 2,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
) -> SearchResult:
    """Improve on best-of-N by searching near the best samples of the round before.

    Args:
        num_samples: N candidates per population in every round. The cost is N * steps network passes, and
            (N - keep) * regenerate_steps for each round after the first; no gradient is taken.
        rounds: R; 1 is best-of-N.
        keep: samples that survive a round, unchanged.
        steps: map steps of a fresh sample.
        t_back: the time that survivors are noised back to; near 0 they are forgotten, near 1 they stay.
        regenerate_steps: map steps from t_back to 1.
        num_populations: independent repetitions; the rows of ``cond`` if omitted.

    Returns:
        The last round's candidates, the survivors first; ``history`` has a row per round.

    Raises:
        UserError: when arguments contradict each other.
    """
    for name, count in (("rounds", rounds), ("steps", steps), ("regenerate_steps", regenerate_steps)):
        parts.check_count(name, count)
    if not 0 < t_back < 1:
        raise UserError(f"t_back must lie between 0 and 1, got {t_back:g}")
    if rounds > 1 and not 1 <= keep < num_samples:
        raise UserError(f"keep must lie between 1 and num_samples - 1 = {num_samples - 1}, got {keep}")
    start = setup.particles(
        flow_map, num_samples, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    problem = parts.problem(flow_map, reward, start, NoLookahead(), chunk_size)
    P, N, x = start.num_populations, num_samples, start.x
    fresh, again = time_grid(steps), time_grid(regenerate_steps, t_start=t_back)
    parents = torch.arange(N - keep, device=x.device) % keep

    def generate(x: torch.Tensor, grid: tuple[float, ...], cond: Cond | None) -> torch.Tensor:
        for t, t_next in zip(grid, grid[1:], strict=False):
            x = dynamics.advance(problem, flow_map, x, t, t_next, cond)
        return x

    with start.cost.measure(x.device):
        x = generate(x, fresh, start.cond)
        rewards = parts.final_rewards(problem, x, start.cond).reshape(P, N)
        seen = [parts.Round(0.0, rewards.reshape(-1))]
        for _ in range(1, rounds):
            top = rewards.topk(keep, dim=1).indices  # (P, keep)
            copies = smc.flat_index(top[:, parents], N)  # (P * (N - keep),)
            rows = take_cond(start.cond, copies)
            noise = smc.normal((len(copies), *x.shape[1:]), generator, x.device, x.dtype)
            noised = flow_map.interpolant.interpolate(noise, x[copies], t_back)
            new = generate(noised, again, rows)
            scored = parts.final_rewards(problem, new, rows).reshape(P, N - keep)
            kept = x[smc.flat_index(top, N)].reshape(P, keep, *x.shape[1:])
            x = torch.cat([kept, new.reshape(P, N - keep, *x.shape[1:])], 1).flatten(0, 1)
            rewards = torch.cat([rewards.gather(1, top), scored], 1)
            seen.append(parts.Round(t_back, rewards.reshape(-1)))
    return parts.unweighted(start, x, rewards.reshape(-1), NO_LAW, seen)
