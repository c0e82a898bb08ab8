"""Search: spend a budget of network passes on one good sample. It maximises; it carries no weights.

Algorithm, at R of the K steps:
    1. look ahead from all N candidates and keep the top k by lambda r(l_t(x)), here the top k by r; or,
       tempered, draw k survivors with weights e^{lambda r / temperature}
    2. clone the survivors back to N; each survivor's first clone goes on without noise, the others get fresh
       noise and, where the reward has a gradient, guidance
The noise-free clone's look-ahead stays what it was (the semigroup identity), so the best candidate is not
lost. Clones share their parent's network passes: a round costs N look-aheads, and k velocities or gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import dynamics, setup
from fmtt.steering import lookahead as lookaheads
from fmtt.steering import schedule as schedules
from fmtt.steering.dynamics import Needs, Probes, Problem
from fmtt.steering.ranks import TIMEOUT
from fmtt.steering.result import SearchHistory, SearchResult
from fmtt.steering.rule import check_kernel
from fmtt.steering.selection import Selector, check_selection, rounds_at
from fmtt.steering.shift import check_step_size
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, Reward, VelocityField

NO_LAW = "None: a search keeps the best candidates and claims no law."


@torch.inference_mode(False)
@torch.no_grad()
def search(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_particles: int,
    keep: int,
    rounds: int,
    selection: str = "top",
    temperature: float = 1.0,
    judge: Reward | None = None,
    num_steps: int | None = None,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    lookahead: str | lookaheads.Lookahead = "flow_map",
    lookahead_steps: int = 1,
    lookahead_map: FlowMap | None = None,
    lookahead_tol: float = 1e-5,
    checkpoint: bool = False,
    schedule: str | schedules.Scalar = "linear",
    noise: float | schedules.Scalar = 1.0,
    guidance: float = 1.0,
    step_size: str = "gradient",
    times: str | schedules.Scalar | Tensor = "uniform",
    gradient: str = "auto",
    num_probes: int = 1,
    probe_scale: float = 0.1,
    max_reward_calls: int | None = None,
    x_init: Tensor | None = None,
    x_init_is: str = "state",
    t_start: float = 0.0,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
    kernel: str = "sde",
    processes: str = "all",
    rank_timeout: float = TIMEOUT,
) -> SearchResult:
    """Search for samples of high reward.

    Args:
        flow_map: the map; its velocity drives the particles unless ``velocity`` is given.
        reward: samples (B, *D) and cond to scores (B,).
        num_particles: N candidates per population.
        keep: candidates that survive a selection.
        rounds: R selections, spread evenly over the steps. The first is at the start if the look-ahead
            calls a network of its own; a denoiser sees the same in every noise there.
        selection: "top" keeps the ``keep`` best; "tempered" draws as many by systematic resampling with
            weights e^{lambda r / temperature}, more diverse and less greedy.
        temperature: of the tempered selection, in units of the reward.
        judge: another reward, which scores each population's best sample; it steers nothing and its calls
            are not counted.
        num_steps: K; if omitted, 50, or with kernel="renoise" the fewest that hold R selections.
        guidance: multiplier of the gradient step, lambda (v/2) grad f for a step of noise variance v;
            the gradient is taken at selections, for survivors only.
        step_size: "gradient", as above; "normalized", a step of ``guidance`` standard deviations of the
            noise along the gradient, whatever the reward's scale and lambda; or "clipped", the gradient's own
            length but at most that.
        gradient: "auto", "zeroth" or "none".
        kernel: "sde", or "renoise" to jump to the look-ahead's endpoint and noise it again: no velocity
            is needed, and a flow map keeps its marginals however few the steps.
        lookahead, lookahead_steps, lookahead_map, lookahead_tol, checkpoint, schedule (not adaptive), noise,
            times, num_probes, probe_scale, max_reward_calls, x_init, x_init_is, t_start, chunk_size,
            velocity, num_populations, processes, rank_timeout: as in :func:`fmtt.tilt`.

    Raises:
        UserError: when arguments contradict each other.
        RankError: when another process ended or did not answer in time.
    """
    if not 1 <= keep <= num_particles:
        raise UserError(f"keep must lie between 1 and num_particles={num_particles}, got {keep}")
    tempered = check_selection(selection, temperature)
    step_size = check_step_size(step_size, guidance)
    field = flow_map.velocity if velocity is None else velocity
    ahead = lookaheads.choose(
        lookahead, lookahead_steps, flow_map, lookahead_map, field, tol=lookahead_tol, checkpoint=checkpoint
    )
    check_kernel(kernel, ahead)
    if num_steps is None:
        num_steps = rounds + (1 if ahead.passes > 0 else 2) if kernel == "renoise" else 50
    plan = schedules.build(
        num_steps, flow_map.interpolant, times=times, schedule=schedule, noise=noise, t_start=t_start
    )
    if plan.adaptive is not None:
        raise UserError("a search has no weights to adapt to: schedule='adaptive' belongs to tilt")
    noisy = dynamics.noisy_steps(plan.noises, kernel)
    chosen = rounds_at(rounds, noisy, at_start=ahead.passes > 0)
    ranks, generator = setup.meet(flow_map, x_init, device, processes, rank_timeout, generator)
    sizes = (plan, num_particles, num_populations, keep, chosen, tempered, lookahead_steps, num_probes)
    moves = (kernel, guidance, step_size, gradient, probe_scale, max_reward_calls)
    looks = lookaheads.described(lookahead, lookahead_tol, checkpoint)
    told = (sizes, moves, looks, x_init_is, dtype, tuple(cond or ()))
    ranks.check_agreement(told, generator, x_init, *(cond or {}).values())
    start = setup.particles(
        flow_map,
        num_particles,
        num_populations,
        data_shape,
        cond,
        device,
        dtype,
        x_init,
        t_start,
        generator,
        x_init_is,
    )
    probes = Probes(num_probes, gradient == "zeroth", probe_scale)
    x, own_cond = setup.own(ranks, start)
    problem = Problem(
        field, flow_map.interpolant, ahead, reward, own_cond, chunk_size, start.cost, probes, ranks
    )
    strength = guidance if guidance != 0 and setup.uses_gradient(problem, start, gradient) else 0.0
    looks = 1 + 2 * num_probes if probes.zeroth else 1
    planned = (rounds + 1) * num_particles + rounds * keep * looks * (strength != 0)
    P, N = start.num_populations, num_particles
    with ranks.together("counting reward calls"):
        setup.check_reward_calls(max_reward_calls, start, planned)

    run = Selector(
        flow_map,
        problem,
        start.cond,
        plan,
        kernel,
        noisy,
        keep,
        tempered,
        strength,
        P,
        N,
        generator,
        step_size,
    )
    pull, carried = None, None
    eve = torch.arange(N, device=x.device).expand(P, N)
    seen: list[Tensor] = []
    with start.cost.measure(x.device):
        for k in range(plan.num_steps):
            if k in chosen:
                survivors = run.select(x, k)
                x, now, carried = survivors.x, survivors.known, survivors.carried
                pull, eve = now.gradient, eve.gather(1, survivors.parents)
                seen.append(survivors.rewards)
            else:
                now = run.look(x, k, P * N)
            x = run.move(x, now, pull, k, carried)
        final = dynamics.evaluate(problem, x, 1.0, Needs(value=True)).value
    assert final is not None
    x, final = ranks.gather(x, P * N), ranks.gather(final, P * N)
    table = torch.stack(seen)
    result = SearchResult(
        samples=x,
        rewards=final.to(x.dtype),
        population=start.population,
        history=SearchHistory(
            torch.tensor([plan.times[k] for k in chosen], dtype=torch.float64), table.amax(2), table.mean(2)
        ),
        cost=start.cost.over(ranks),
        base_law=NO_LAW,
        num_populations=P,
        eve=eve.reshape(-1),
    )
    if judge is None:
        return result
    with ranks.together("judging"):
        judged = judge(result.best, take_cond(start.cond, result.best_rows))
        if judged.shape != (P,) or not bool(judged.isfinite().all()):
            raise UserError(
                f"the judge must return a finite number for each of {P} samples, got {judged.tolist()}"
            )
    return replace(result, judge_rewards=judged)
