"""``fmtt.tilt``: from what a user asks for to weighted samples of the tilted law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fmtt.steering import lookahead as lookaheads
from fmtt.steering import rule as rules
from fmtt.steering import sampler, setup
from fmtt.steering import schedule as schedules
from fmtt.steering.adaptive import Adaptive
from fmtt.steering.problem import Probes, Problem
from fmtt.steering.ranks import TIMEOUT
from fmtt.steering.result import History, TiltResult
from fmtt.steering.rule import Resampling, Rule
from fmtt.types import Cond, FlowMap, Reward, VelocityField


@torch.inference_mode(False)
@torch.no_grad()
def tilt(
    flow_map: FlowMap,
    reward: Reward,
    *,
    num_particles: int,
    num_steps: int = 50,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    lookahead: str | lookaheads.Lookahead = "flow_map",
    lookahead_steps: int = 1,
    lookahead_map: FlowMap | None = None,
    lookahead_tol: float = 1e-5,
    checkpoint: bool = False,
    weights: str = "exact",
    schedule: str | schedules.Scalar | Adaptive = "linear",
    noise: float | schedules.Scalar = 1.0,
    guidance: float = 1.0,
    step_size: str = "gradient",
    chi: float | schedules.Scalar = 0.0,
    times: str | schedules.Scalar | Tensor = "uniform",
    gradient: str = "auto",
    gradient_every: int = 1,
    num_probes: int = 1,
    probe_scale: float = 0.1,
    max_reward_calls: int | None = None,
    x_init: Tensor | None = None,
    x_init_is: str = "state",
    t_start: float = 0.0,
    resample: str = "systematic",
    ess_threshold: float = 0.5,
    resample_at: Sequence[float] | None = None,
    resample_share: float = 1.0,
    final_resample: bool = False,
    chunk_size: int | None = None,
    velocity: VelocityField | None = None,
    generator: torch.Generator | None = None,
    num_populations: int | None = None,
    kernel: str = "sde",
    processes: str = "all",
    rank_timeout: float = TIMEOUT,
) -> TiltResult:
    """Sample from rho e^r / Z, the model's law tilted by a reward.

    Args:
        flow_map: the map; its velocity drives the particles unless ``velocity`` is given.
        reward: samples (B, *D) and cond to scores (B,).
        num_particles: N, per population.
        num_steps: K, steps of the time grid.
        cond: one row for all, one per population, or, with ``num_populations`` given, one per particle.
        lookahead: "flow_map", "denoiser", "euler", "ode" (the velocity's own ODE to ``lookahead_tol``,
            needs torchdiffeq), "none", or a Lookahead.
        lookahead_steps: k of the flow map's or Euler's look-ahead.
        lookahead_map: another map for lookahead="flow_map", such as a few-step one for a many-step sampler.
        checkpoint: keep only the states between look-ahead steps and repeat their forwards in the reverse
            pass (they are counted), so that k steps need the memory of one.
        weights: "exact" corrects for the look-ahead's error and takes the velocity as the model's own;
            "path" is exact for the discretised base process under any guidance; "paper" assumes an exact
            flow map and warns; "none" guides without weights.
        schedule: lambda(t) from 0 to 1: "linear"; "ramp:T", 0 until time T; a callable; "adaptive", at
            constant thermodynamic speed, or "adaptive:CESS", steps of this conditional ESS while the steps
            left suffice. Adaptive lambda is chosen by each population from rewards already computed and
            costs no bias (see fmtt/steering/adaptive.py).
        noise: eps_t = noise * alpha_t, or a callable eps(t).
        guidance: multiplier of the reward's gradient; other than 1 needs weights="path" or "none".
        step_size: "gradient", as long as the reward's gradient and ``guidance`` say; "clipped", the
            gradient's own length but at most ``guidance`` standard deviations of the step's noise, so that a
            sharp reward does not overshoot; "normalized", that long whatever the reward's scale and lambda.
            The last two need weights="path" or "none".
        chi: extra drift chi lambda grad f, a number or a callable chi(t). Under weights="exact" its
            Laplacian is estimated by ``num_probes`` random signs per particle and step, each a second
            reverse pass: unbiased, with variance 2 sum_{i != j} H_ij^2 / num_probes for the Hessian H of f.
            A flow map that parts modes bends sharply between them, and steps have to be as small as that
            asks; "path" does not mind. Needs weights other than "paper".
        times: "uniform", "shifted:S", a callable bending [0, 1] onto itself, or the K + 1 times.
        gradient: "auto" uses the reward's gradient; "zeroth" estimates it from 2 * num_probes more rewards
            per look-ahead, at ``probe_scale`` from its endpoint, and "none" leaves it out: for rewards
            without one, with weights="path" or "none".
        gradient_every: look ahead at every m-th step only and keep the gradient in between; needs
            weights="path" or "none".
        num_probes: random directions per particle, for ``chi`` or gradient="zeroth".
        probe_scale: in data units.
        max_reward_calls: refuse to start if the run would score more samples than this.
        x_init, t_start: start from these (1, N or P*N rows) at this time.
        x_init_is: "state", particles as they are at ``t_start``, or "clean", finished samples to edit: each
            particle is one of them noised to ``t_start`` by the interpolant, with noise of its own. The
            smaller ``t_start``, the freer the edit. ``base_law`` says which law is tilted.
        resample: "systematic", "stratified", "residual", "multinomial", "ssp" or "none"; a population is
            resampled when its ESS fraction falls below ``ess_threshold``.
        resample_at: resample on reaching these times, and at no others.
        resample_share: resample only this part of a population, its lightest and heaviest particles.
        final_resample: return equally weighted samples.
        chunk_size: particles per network call, to bound memory. Noise is drawn for all of them, so results
            agree up to the last bits in which a network's kernels depend on the batch.
        velocity: another velocity field for the particles, for instance the map's teacher.
        num_populations: P independent populations in one batch; the rows of ``cond`` if omitted.
        kernel: "sde", or "renoise" to jump to the look-ahead's endpoint and noise it again, which
            suits few steps and needs weights="path" or "none".
        processes: "all" shares one run among the processes of torchrun or torch.distributed: each holds some
            of the particles, and all return the whole result, which is one process's up to chunking. Every
            process passes the same arguments and a generator of the same seed (rank 0 seeds one for all
            where none is given). "one" is a run of its own in each process.
        rank_timeout: seconds that a process waits for the others at any one step; then, or when another one
            ends, it raises a RankError.

    Raises:
        UserError: when arguments contradict each other; the message names them.
        RankError: when another process ended or did not answer in time.
    """
    plan = schedules.build(
        num_steps, flow_map.interpolant, times=times, schedule=schedule, noise=noise, t_start=t_start
    )
    field = flow_map.velocity if velocity is None else velocity
    drifts = schedules.drifts(chi, plan.times)
    ranks, generator = setup.meet(flow_map, x_init, device, processes, rank_timeout, generator)
    sizes = (plan, drifts, num_particles, num_populations, lookahead_steps, num_probes, probe_scale)
    moves = (weights, kernel, guidance, step_size, gradient, gradient_every, max_reward_calls)
    resampling = (resample, ess_threshold, resample_at, resample_share, final_resample)
    looks = lookaheads.described(lookahead, lookahead_tol, checkpoint)
    told = (sizes, moves, resampling, looks, x_init_is, dtype, tuple(cond or ()))
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
    ahead = lookaheads.choose(
        lookahead, lookahead_steps, flow_map, lookahead_map, field, tol=lookahead_tol, checkpoint=checkpoint
    )
    rules.check_kernel(kernel, ahead)
    probes = Probes(num_probes, gradient == "zeroth", probe_scale)
    x, own_cond = setup.own(ranks, start)
    problem = Problem(
        field, flow_map.interpolant, ahead, reward, own_cond, chunk_size, start.cost, probes, ranks
    )
    guides = setup.uses_gradient(problem, start, gradient)
    rule = Rule(
        plan,
        weights,
        kernel,
        "none" if not guides else "zeroth" if probes.zeroth else "reverse",
        guidance,
        step_size,
        drifts,
        gradient_every,
        Resampling(
            resample,
            ess_threshold,
            rules.resampling_steps(plan.times, resample_at),
            resample_share,
            final_resample,
        ),
        start.num_populations,
        num_particles,
    )
    given = None if x_init is None else x_init_is
    rules.check(rule, given)
    with ranks.together("counting reward calls"):
        setup.check_reward_calls(max_reward_calls, start, rule.reward_calls(num_probes) * num_particles)

    total, start = len(start.x), replace(start, x=x.new_empty(0))
    with start.cost.measure(x.device):
        held = [sampler.init(problem, rule, x, generator)]
        del x  # only the sampler holds the particles, and lets them go as they move
        infos: list[sampler.Info] = []
        for _ in range(plan.num_steps):
            *held, info = sampler.step(problem, rule, held.pop(), generator)
            infos.append(info)
    state = held[0]
    final = state.particles
    assert final.evaluation.value is not None
    samples = ranks.gather(final.x, total)
    single = start.num_populations == 1
    ess, history = infos[-1].ess, _history(infos)
    log_z = state.log_z
    if weights == "none":  # nothing was weighed, so nothing is known of Z
        log_z = torch.full_like(log_z, float("nan"))
        history = history._replace(log_z=torch.full_like(history.log_z, float("nan")))
    return TiltResult(
        samples=samples,
        log_weights=state.log_weights.reshape(-1),
        log_z=log_z[0] if single else log_z,
        ess=ess[0] if single else ess,
        rewards=ranks.gather(final.evaluation.value, total).to(samples.dtype),
        population=start.population,
        eve=ranks.gather(final.eve, total),
        history=history,
        cost=start.cost.over(ranks),
        base_law=rules.base_law(rule, given, t_start),
        num_populations=start.num_populations,
    )


def _history(infos: list[sampler.Info]) -> History:
    columns = {name: [getattr(info, name) for info in infos] for name in sampler.Info._fields[1:]}
    stacked = {name: torch.stack(rows) for name, rows in columns.items()}
    stacked["ancestors"] = stacked["ancestors"].to(torch.int32)
    return History(
        t=torch.tensor([info.t for info in infos], dtype=torch.float64),
        thermodynamic_length=stacked.pop("length").cumsum(0),
        total_discrepancy=stacked.pop("discrepancy").cumsum(0),
        **stacked,
    )
