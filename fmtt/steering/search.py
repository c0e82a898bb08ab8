"""Search: spend a budget of network passes on one good sample. It maximises; it carries no weights.

Algorithm, at R of the K steps:
    1. look ahead from all N candidates and keep the top k by lambda r(l_t(x)), here the top k by r
    2. clone the survivors back to N; each survivor's first clone goes on without noise, the others get fresh
       noise and, where the reward has a gradient, guidance
The noise-free clone's look-ahead stays what it was (the semigroup identity), so the best candidate is not
lost. Clones share their parent's network passes: a round costs N look-aheads, and k velocities or gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import dynamics, setup, smc
from fmtt.steering import lookahead as lookaheads
from fmtt.steering import schedule as schedules
from fmtt.steering.dynamics import Evaluation, Needs, Problem
from fmtt.steering.result import SearchHistory, SearchResult
from fmtt.steering.rule import check_kernel
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
    num_steps: int | None = None,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    lookahead: str | lookaheads.Lookahead = "flow_map",
    lookahead_steps: int = 1,
    schedule: str | schedules.Scalar = "linear",
    noise: float | schedules.Scalar = 1.0,
    guidance: float = 1.0,
    times: str | schedules.Scalar | Tensor = "uniform",
    gradient: str = "auto",
    max_reward_calls: int | None = None,
    x_init: Tensor | None = None,
    t_start: float = 0.0,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
    kernel: str = "sde",
) -> SearchResult:
    """Search for samples of high reward.

    Args:
        flow_map: the map; its velocity drives the particles unless ``velocity`` is given.
        reward: samples (B, *D) and cond to scores (B,).
        num_particles: N candidates per population.
        keep: candidates that survive a selection.
        rounds: R selections, spread evenly over the steps. The first is at the start if the look-ahead
            calls a network of its own; a denoiser sees the same in every noise there.
        num_steps: K; if omitted, 50, or with kernel="renoise" the fewest that hold R selections.
        guidance: multiplier of the gradient step, lambda (v/2) grad f for a step of noise variance v;
            the gradient is taken at selections, for survivors only.
        gradient: "auto" or "none".
        kernel: "sde", or "renoise" to jump to the look-ahead's endpoint and noise it again: no velocity
            is needed, and a flow map keeps its marginals however few the steps.
        lookahead, lookahead_steps, schedule, noise, times, max_reward_calls, x_init, t_start, chunk_size,
            velocity, num_populations: as in :func:`fmtt.tilt`.

    Raises:
        UserError: when arguments contradict each other.
    """
    if not 1 <= keep <= num_particles:
        raise UserError(f"keep must lie between 1 and num_particles={num_particles}, got {keep}")
    field = flow_map.velocity if velocity is None else velocity
    ahead = lookaheads.build(lookahead, lookahead_steps, flow_map, field)
    check_kernel(kernel, ahead)
    if num_steps is None:
        num_steps = rounds + (1 if ahead.passes > 0 else 2) if kernel == "renoise" else 50
    plan = schedules.build(
        num_steps, flow_map.interpolant, times=times, schedule=schedule, noise=noise, t_start=t_start
    )
    noisy = dynamics.noisy_steps(plan.noises, kernel)
    chosen = _selections(rounds, noisy, at_start=ahead.passes > 0)
    start = setup.particles(
        flow_map, num_particles, num_populations, data_shape, cond, device, dtype, x_init, t_start, generator
    )
    problem = Problem(field, flow_map.interpolant, ahead, reward, start.cond, chunk_size, start.cost)
    strength = guidance if guidance != 0 and setup.uses_gradient(problem, start, gradient) else 0.0
    planned = (rounds + 1) * num_particles + rounds * keep * (strength != 0)
    setup.check_reward_calls(max_reward_calls, start, planned)

    run = _Run(flow_map, problem, plan, kernel, noisy, keep, strength, start.num_populations, num_particles)
    x, pull, selected = start.x, None, False
    seen: list[Tensor] = []
    with start.cost.measure(x.device):
        for k in range(plan.num_steps):
            if k in chosen:
                x, now, rewards = run.select(x, k)
                pull, selected = now.gradient, True
                seen.append(rewards)
            else:
                now = run.look(x, k)
            x = run.move(x, now, pull, k, selected, generator)
        final = dynamics.evaluate(problem, x, 1.0, Needs(value=True)).value
    assert final is not None
    table = torch.stack(seen)
    return SearchResult(
        samples=x,
        rewards=final.to(x.dtype),
        population=start.population,
        history=SearchHistory(
            torch.tensor([plan.times[k] for k in chosen], dtype=torch.float64), table.amax(2), table.mean(2)
        ),
        cost=start.cost,
        base_law=NO_LAW,
        num_populations=start.num_populations,
    )


@dataclass(frozen=True)
class _Run:
    """A search's constants, and its two operations on P*N candidates."""

    flow_map: FlowMap
    problem: Problem
    plan: schedules.Plan
    kernel: str
    noisy: tuple[bool, ...]
    keep: int
    guidance: float
    P: int
    N: int

    def look(self, x: Tensor, k: int, cond: Cond | None = None, *, gradient: bool = False) -> Evaluation:
        """What a move from t_k needs, for candidates or survivors x."""
        renoises = self.kernel == "renoise"
        needs = Needs(velocity=not renoises, gradient=gradient, endpoint=renoises)
        return dynamics.evaluate(self.problem, x, self.plan.times[k], needs, cond)

    def select(self, x: Tensor, k: int) -> tuple[Tensor, Evaluation, Tensor]:
        """(clones (P*N, *D), what is known at them, look-ahead rewards (P, N) before the selection)."""
        renoises = self.kernel == "renoise"
        shared = self.problem.lookahead.uses_velocity and not renoises
        needs = Needs(velocity=shared, value=True, endpoint=renoises)
        known = dynamics.evaluate(self.problem, x, self.plan.times[k], needs)
        assert known.value is not None
        rewards = known.value.reshape(self.P, self.N)
        top = smc.flat_index(rewards.topk(self.keep, dim=1).indices, self.N)
        x, known, cond = x[top], smc.gather(known, top), take_cond(self.problem.cond, top)
        pulls = self.guidance != 0 and self.plan.strengths[k + 1] != 0
        if pulls or not (renoises or shared):
            known = self.look(x, k, cond, gradient=pulls)
        parents = torch.arange(self.N, device=x.device) % self.keep
        clones = smc.flat_index(parents.expand(self.P, self.N), self.keep)
        return x[clones], smc.gather(known, clones), rewards

    def move(
        self,
        x: Tensor,
        now: Evaluation,
        pull: Tensor | None,
        k: int,
        selected: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Candidates at t_{k+1}: fresh noise for all but the survivors' first clones."""
        t, t_next, strength = self.plan.times[k], self.plan.times[k + 1], self.plan.strengths[k + 1]
        transition = dynamics.kernel(
            self.kernel, self.problem.interpolant, x, now, t, t_next, self.plan.noises[k]
        )
        if not self.noisy[k]:
            return transition.mean
        noise = smc.normal(tuple(x.shape), generator, x.device, x.dtype)
        shift = None
        if pull is not None:
            shift = dynamics.shift_of(pull, transition, t_next - t, strength, self.guidance, 0.0)
        moved, _ = dynamics.guided(transition, shift, noise)
        if selected:
            carried = torch.arange(self.N, device=x.device) < min(self.keep, self.N // 2)
            index = carried.repeat(self.P).nonzero().squeeze(1)
            moved[index] = self._carry(
                x[index], smc.gather(now, index), k, take_cond(self.problem.cond, index)
            )
        return moved

    def _carry(self, x: Tensor, now: Evaluation, k: int, cond: Cond | None) -> Tensor:
        """The flow's own next state, which leaves an exact look-ahead where it was."""
        t, t_next = self.plan.times[k], self.plan.times[k + 1]
        if now.velocity is not None:
            return x + (t_next - t) * now.velocity
        if self.problem.lookahead.uses_velocity:
            assert now.endpoint is not None
            return dynamics.interpolate_towards(self.problem.interpolant, x, now.endpoint, t, t_next)
        return dynamics.advance(self.problem, self.flow_map, x, t, t_next, cond)


def _selections(rounds: int, noisy: tuple[bool, ...], *, at_start: bool) -> tuple[int, ...]:
    """R steps spread evenly over those that draw noise."""
    first = 0 if at_start else 1
    steps = [k for k, draws in enumerate(noisy) if draws and k >= first]
    if not 1 <= rounds <= len(steps):
        raise UserError(
            f"rounds must lie between 1 and {len(steps)}, the steps that draw noise and can be selected at, "
            f"got {rounds}: use more num_steps, or noise > 0"
        )
    return tuple(steps[j * len(steps) // rounds] for j in range(rounds))
