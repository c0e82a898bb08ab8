"""FMRG: deterministic guidance through a flow map (How to Guide Your Flow, arXiv 2604.27147).

At each step the reward of the map's endpoint X_{t,1}(x) pulls the state along the flow: no noise, no weights.
    jacobian   (FMRG-J)  x' = flow step + strength |flow step| g / |g|, g = grad_x r(X_{t,1}(x))
    euclidean  (FMRG-E)  x' = flow step + strength alpha(t) beta(t') g, g = grad r at X_{t,1}(x)
The euclidean pull differentiates the reward only. The flow step is X_{t,t'}(x), or the straight line towards
X_{t,1}(x), which needs no network pass of its own. Steps are guided up to a time; a few plain map steps
finish. Several candidates may share the first steps ("warm-up"); the one with the best look-ahead goes on.
"""

from __future__ import annotations

import torch

from fmtt.baselines import parts
from fmtt.baselines.denoiser_guidance import length, unit
from fmtt.errors import UserError
from fmtt.steering import dynamics, setup, smc
from fmtt.steering.dynamics import Needs
from fmtt.steering.lookahead import FlowMapLookahead, NoLookahead
from fmtt.steering.result import SearchResult
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, Reward

NO_LAW = "None: a guided deterministic trajectory follows no stated law."
GRADIENTS, STEPS = ("jacobian", "euclidean"), ("line", "flow_map")


@torch.inference_mode(False)
@torch.no_grad()
def fmrg(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_samples: int = 1,
    num_steps: int = 8,
    guide_until: float = 0.5,
    finish_steps: int = 2,
    gradient: str = "jacobian",
    step: str = "line",
    strength: float = 3.0,
    warmup_candidates: int = 1,
    warmup_steps: int = 0,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
) -> SearchResult:
    """Guide N trajectories per population.

    Args:
        num_samples: N. A guided step costs 1 network pass, 2 more for the jacobian's backward and 1 more for
            step="flow_map"; finishing costs finish_steps, and the choice of candidates 1 pass each.
        num_steps: guided steps, uniform on [0, guide_until].
        guide_until: the time at which guidance ends.
        finish_steps: map steps from there to 1.
        gradient: "jacobian", through the map and normalised to the flow step's length; or "euclidean", at
            the endpoint and in the reward's own scale.
        step: "line" or "flow_map".
        strength: of the pull.
        warmup_candidates, warmup_steps: M candidates per trajectory for the first steps.
        num_populations: independent repetitions; the rows of ``cond`` if omitted.

    Raises:
        UserError: when arguments contradict each other or the reward has no gradient.
    """
    parts.check_choice("gradient", gradient, GRADIENTS)
    parts.check_choice("step", step, STEPS)
    counts = {"num_samples": num_samples, "num_steps": num_steps, "finish_steps": finish_steps}
    for name, count in {**counts, "warmup_candidates": warmup_candidates}.items():
        parts.check_count(name, count)
    if not 0 < guide_until < 1:
        raise UserError(f"guide_until must lie between 0 and 1, got {guide_until:g}")
    M = warmup_candidates
    if M > 1 and not 1 <= warmup_steps < num_steps:
        raise UserError(f"warmup_steps must lie between 1 and num_steps - 1, got {warmup_steps}")
    grid = [guide_until * k / num_steps for k in range(num_steps + 1)]
    end = [guide_until + (1 - guide_until) * k / finish_steps for k in range(finish_steps)] + [1.0]
    start = setup.particles(
        flow_map, num_samples * M, num_populations, data_shape, cond, device, dtype, generator=generator
    )
    path = flow_map.interpolant
    problem = parts.problem(flow_map, reward, start, FlowMapLookahead(flow_map), chunk_size)
    at_endpoint = parts.problem(flow_map, reward, start, NoLookahead(), chunk_size)
    parts.check_gradient(at_endpoint, start, "fmrg")
    jacobian, x, rows, seen = gradient == "jacobian", start.x, start.cond, []

    with start.cost.measure(x.device):
        for k, (t, t_next) in enumerate(zip(grid, grid[1:], strict=False)):
            if M > 1 and k == warmup_steps:
                value = dynamics.evaluate(problem, x, t, Needs(value=True), rows).value
                assert value is not None
                seen.append(parts.Round(t, value))
                best = smc.flat_index(value.reshape(-1, M).argmax(1, keepdim=True), M)
                x, rows = x[best], take_cond(rows, best)
            now = dynamics.evaluate(problem, x, t, Needs(endpoint=True, gradient=jacobian), rows)
            assert now.endpoint is not None
            if step == "line":
                moved = dynamics.interpolate_towards(path, x, now.endpoint, t, t_next)
            else:
                moved = dynamics.advance(problem, flow_map, x, t, t_next, rows)
            if jacobian:
                assert now.gradient is not None
                pull = unit(now.gradient) * length(moved - x)
            else:
                # Without a look-ahead no time but 1 matters, and 1 alone would leave the gradient out.
                pull = dynamics.evaluate(at_endpoint, now.endpoint, 0.0, Needs(gradient=True), rows).gradient
                assert pull is not None
                pull = path.coefficients(t, x).alpha * path.coefficients(t_next, x).beta * pull
            x = moved + strength * pull
        for t, t_next in zip(end, end[1:], strict=False):
            x = dynamics.advance(problem, flow_map, x, t, t_next, rows)
        rewards = parts.final_rewards(problem, x, rows)
    return parts.unweighted(start, x, rewards, NO_LAW, seen)
