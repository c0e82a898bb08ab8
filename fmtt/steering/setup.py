"""From what a user passes to a batch of particles, and the checks that tilt, search and sample share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.steering import processes, smc
from fmtt.steering.cost import Cost
from fmtt.steering.dynamics import Problem, score
from fmtt.steering.ranks import Ranks
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap

GRADIENTS = ("auto", "zeroth", "none")
INITS = ("state", "clean")


@dataclass(frozen=True)
class Start:
    """P populations of N particles before the first step.

    Attributes:
        x: (P*N, *D).
        cond: one row per particle, or None.
        population: (P*N,).
    """

    x: Tensor
    cond: Cond | None
    population: Tensor
    num_populations: int
    cost: Cost


def particles(
    flow_map: FlowMap,
    num_particles: int,
    num_populations: int | None = None,
    data_shape: tuple[int, ...] | None = None,
    cond: Cond | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    x_init: Tensor | None = None,
    t_start: float = 0.0,
    generator: torch.Generator | None = None,
    x_init_is: str = "state",
) -> Start:
    """Draw, or take over, the initial particles.

    Args:
        x_init: what ``x_init_is`` says: "state", particles as they are at ``t_start``; or "clean", finished
            samples, each particle of which gets noise of its own: alpha x_0 + beta x_init at ``t_start``.
        cond: one row for all, one per population, or, with ``num_populations`` given, one per particle.

    Raises:
        UserError: when shapes or counts do not fit.
    """
    if num_particles < 1:
        raise UserError(f"num_particles must be at least 1, got {num_particles}")
    if x_init_is not in INITS:
        raise UserError(f"x_init_is must be one of {', '.join(INITS)}, got {x_init_is!r}")
    P = _num_populations(cond, num_populations, num_particles)
    total = P * num_particles
    device, dtype = _placement(flow_map, x_init, device, dtype)
    shape = data_shape if data_shape is not None else getattr(flow_map, "data_shape", None)
    if x_init is None:
        if t_start != 0:
            raise UserError(f"t_start={t_start:g} needs x_init, the states at that time")
        if x_init_is != "state":
            raise UserError(f"x_init_is={x_init_is!r} says what x_init is, and there is none")
        if shape is None:
            raise UserError("data_shape is needed: this flow map does not say its own")
        x = smc.normal((total, *shape), generator, device, dtype)
    else:
        x = x_init.detach().to(device=device, dtype=dtype, copy=True)
        if not x_init.is_floating_point() or not bool(x.isfinite().all()):
            raise UserError(f"x_init must hold finite numbers in the scale of the data, got {x_init.dtype}")
        if shape is not None and tuple(x.shape[1:]) != tuple(shape):
            raise UserError(f"x_init has rows of shape {tuple(x.shape[1:])}, the data have {tuple(shape)}")
        if x.shape[0] not in (1, num_particles, total):
            counts = " or ".join(map(str, sorted({1, num_particles, total})))
            raise UserError(
                f"x_init must have {counts} rows, for one start for all or one per particle, got {x.shape[0]}"
            )
        if x.shape[0] != total:
            x = x.repeat(total // x.shape[0], *([1] * (x.ndim - 1)))
        if x_init_is == "clean":
            noise = smc.normal(tuple(x.shape), generator, device, dtype)
            x = flow_map.interpolant.interpolate(noise, x, t_start)
    population = torch.arange(P, device=x.device).repeat_interleave(num_particles)
    if cond is not None:
        cond = {name: value.to(x.device) for name, value in cond.items()}
        rows = next(iter(cond.values())).shape[0] if cond else 0
        if rows != total:
            cond = take_cond(cond, torch.zeros_like(population) if rows == 1 else population)
    return Start(x, cond, population, P, Cost(populations=P))


def meet(
    flow_map: FlowMap,
    x_init: Tensor | None,
    device: torch.device | str | None,
    wanted: str,
    timeout: float,
    generator: torch.Generator | None,
) -> tuple[Ranks, torch.Generator | None]:
    """The processes that share the run, and a generator that is the same in all of them."""
    device, _ = _placement(flow_map, x_init, device, None)
    ranks = processes.find(wanted, timeout, device)
    return ranks, ranks.generator(generator, device)


def own(ranks: Ranks, start: Start) -> tuple[Tensor, Cond | None]:
    """This rank's particles and their conditions.

    Raises:
        UserError: when a rank would have none.
    """
    total = len(start.x)
    if total < ranks.size:
        raise UserError(
            f"{total} particles cannot be shared by {ranks.size} processes: use more, or fewer of those"
        )
    return ranks.share(start.x), take_cond(start.cond, ranks.rows(total))


def uses_gradient(problem: Problem, start: Start, gradient: str) -> bool:
    """Whether the reward's gradient steers.

    Under "auto" the reward says so by an attribute ``differentiable``, or is tried on one particle.
    """
    if gradient not in GRADIENTS:
        raise UserError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    if gradient in ("none", "zeroth"):
        return gradient == "zeroth"
    declared = getattr(problem.reward, "differentiable", None)
    if declared is not None:
        return bool(declared)

    def tries() -> bool:
        with torch.enable_grad():
            probe = start.x[:1].detach().clone().requires_grad_()
            return score(problem, probe, take_cond(start.cond, slice(0, 1))).requires_grad

    return problem.ranks.lead(tries, "trying the reward")


def check_reward_calls(limit: int | None, start: Start, planned: float) -> None:
    """Refuse a run that would score too many samples.

    Args:
        planned: reward calls per population, besides those already made.

    Raises:
        UserError: when all populations together would exceed ``limit``.
    """
    total = start.cost.reward_calls + round(planned * start.num_populations)
    if limit is not None and total > limit:
        raise UserError(
            f"the run would make {total} reward calls, more than max_reward_calls={limit}: "
            "use fewer particles, steps or rounds, or a larger gradient_every with weights='path'"
        )


def _num_populations(cond: Cond | None, num_populations: int | None, num_particles: int) -> int:
    if num_populations is not None and num_populations < 1:
        raise UserError(f"num_populations must be at least 1, got {num_populations}")
    if not cond:
        return num_populations or 1
    rows = {name: value.shape[0] if value.ndim else 0 for name, value in cond.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise UserError(f"every entry of cond needs the same number of rows, got {rows}")
    count = next(iter(rows.values()))
    if num_populations is None or count == num_populations:
        return count
    total = num_populations * num_particles
    if count not in (1, total):
        raise UserError(
            f"cond has {count} rows for num_populations={num_populations}: give 1 row, {num_populations}, or "
            f"{total} for one per particle"
        )
    return num_populations


def _placement(
    flow_map: FlowMap, x_init: Tensor | None, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    # The network's own come first: an image that a user hands over may be anywhere, and in any precision.
    like = next(flow_map.parameters(), None) if isinstance(flow_map, nn.Module) else None
    like = x_init if like is None else like
    if device is None:
        device = like.device if like is not None else "cpu"
    if dtype is None:
        dtype = like.dtype if like is not None else torch.get_default_dtype()
    return torch.device(device), dtype
