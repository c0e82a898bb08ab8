"""One step of Flow Map Trajectory Tilting (arXiv 2511.22688): where particles go and what they weigh.

With r_t = lambda(t) f_t, f_t = r(l_t(x)) and the residual c_t = d/dt f_t + b . grad f_t, the guided SDE is
    dx = [b + eps (s + grad r_t) + chi grad r_t] dt + sqrt(2 eps) dW
and the log-weights are
    exact   dA = (lambda' f + lambda c) dt                          any smooth look-ahead with l_1 = id
    paper   dA = lambda' f dt                                       right where c = 0: an exact flow map
    path    dA = r_{k+1} - r_k + log N(x'; m, v) - log N(x'; m + g, v)    any guidance, any step
Both derivatives in c come from the one reverse pass that guidance pays for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.interpolant import Interpolant
from fmtt.steering.cost import Cost
from fmtt.steering.lookahead import Lookahead
from fmtt.tensor import batch_time, dot, take_cond
from fmtt.types import Cond, FlowMap, Reward, VelocityField


@dataclass(frozen=True)
class Problem:
    """What is tilted, and by what: everything that does not change from step to step.

    Attributes:
        cond: conditioning with one row per particle.
        chunk_size: particles per network call; None is all of them.
    """

    velocity: VelocityField
    interpolant: Interpolant
    lookahead: Lookahead
    reward: Reward
    cond: Cond | None
    chunk_size: int | None
    cost: Cost

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, got {self.chunk_size}")


class Needs(NamedTuple):
    """Which quantities of a state are wanted; each costs only what it must."""

    velocity: bool = False
    value: bool = False
    gradient: bool = False
    endpoint: bool = False


class Evaluation(NamedTuple):
    """Quantities of B particles at one time; None where not wanted.

    Attributes:
        velocity: b (B, *D).
        value: f (B,) in float64.
        gradient: grad_x f (B, *D).
        residual: c = d/dt f + b . grad f (B,) in float64; needs gradient and velocity.
        endpoint: the look-ahead l_t(x) (B, *D).
    """

    velocity: Tensor | None = None
    value: Tensor | None = None
    gradient: Tensor | None = None
    residual: Tensor | None = None
    endpoint: Tensor | None = None


def score(problem: Problem, x: Tensor, cond: Cond | None) -> Tensor:
    """The reward of samples (B, *D), shape (B,), counted and checked.

    Raises:
        UserError: when the reward is not one finite number per sample.
    """
    value = problem.reward(x, cond)
    problem.cost.reward_calls += x.shape[0]
    if not isinstance(value, Tensor) or value.shape != (x.shape[0],):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"the reward must return shape ({x.shape[0]},) for {x.shape[0]} samples, got {shape}")
    if not bool(torch.isfinite(value).all()):
        raise UserError("the reward returned a value that is not finite; bound it, for instance with clamp")
    return value


def in_chunks(
    work: Callable[[Tensor, Cond | None], Evaluation], x: Tensor, cond: Cond | None, size: int | None
) -> Evaluation:
    """Apply ``work`` to ``size`` particles at a time and join the results."""
    if size is None or size >= x.shape[0]:
        return work(x, cond)
    rows = [slice(i, i + size) for i in range(0, x.shape[0], size)]
    parts = [work(x[r], take_cond(cond, r)) for r in rows]
    return Evaluation(*(None if c[0] is None else torch.cat(c) for c in zip(*parts, strict=True)))


def evaluate(problem: Problem, x: Tensor, t: float, needs: Needs, cond: Cond | None = None) -> Evaluation:
    """Velocity, look-ahead reward and its derivatives of particles x (B, *D) at time t.

    At t = 1 the look-ahead is the identity and no network is called.
    """
    cond = problem.cond if cond is None else cond

    def work(x: Tensor, cond: Cond | None) -> Evaluation:
        if t >= 1:
            return Evaluation(value=score(problem, x, cond).double(), endpoint=x if needs.endpoint else None)
        return _evaluate(problem, x, batch_time(t, x), needs, cond)

    return in_chunks(work, x, cond, problem.chunk_size)


def _evaluate(problem: Problem, x: Tensor, t: Tensor, needs: Needs, cond: Cond | None) -> Evaluation:
    lookahead, B = problem.lookahead, x.shape[0]
    looks = needs.value or needs.gradient or needs.endpoint
    shares = looks and lookahead.uses_velocity
    value = gradient = residual = endpoint = b = None
    if looks:
        with torch.set_grad_enabled(needs.gradient):
            x_, t_ = x.detach(), t.detach().clone()
            if needs.gradient:
                x_, t_ = x_.requires_grad_(), t_.requires_grad_()
            b = problem.velocity(x_, t_, cond) if shares else None
            endpoint = lookahead(x_, t_, cond, b)
            if needs.value or needs.gradient:
                value = score(problem, endpoint, cond)
        passes = lookahead.passes + shares
        problem.cost.forwards += B * passes
        if needs.gradient:
            assert value is not None
            gradient, d_t = _derivatives(value, x_, t_)
            problem.cost.backwards += B * passes
    if needs.velocity and b is None:
        b = problem.velocity(x, t, cond)
        problem.cost.forwards += B
    b = None if b is None else b.detach()
    if needs.gradient and b is not None:
        assert gradient is not None
        residual = d_t.double() + dot(b.double(), gradient.double())
    return Evaluation(
        b if needs.velocity else None,
        None if value is None else value.detach().double(),
        gradient,
        residual,
        endpoint.detach() if needs.endpoint and endpoint is not None else None,
    )


def _derivatives(value: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(grad_x f, d/dt f) of f (B,) by one reverse pass."""
    if not value.requires_grad:
        raise UserError("the reward has no gradient: pass gradient='none' together with weights='path'")
    d_x, d_t = torch.autograd.grad(value, (x, t), torch.ones_like(value), allow_unused=True)
    if d_x is None:
        raise UserError("no gradient reaches x through the reward: pass gradient='none' and weights='path'")
    return d_x, torch.zeros_like(t) if d_t is None else d_t


class Kernel(NamedTuple):
    """The unguided transition of one step, N(mean, variance I), before guidance.

    Attributes:
        mean: (B, *D).
        variance: a float; 0 is a deterministic step.
    """

    mean: Tensor
    variance: float


def sde_kernel(interpolant: Interpolant, x: Tensor, b: Tensor, t: float, t_next: float, eps: float) -> Kernel:
    """Euler-Maruyama for dx = (b + eps s) dt + sqrt(2 eps) dW, with eps s = -eps E[x_0 | x] / alpha(t)."""
    h = t_next - t
    if eps == 0:
        return Kernel(x + h * b, 0.0)
    return Kernel(x + h * (b - (eps / _at(interpolant.alpha, t)) * interpolant.noise(b, x, t)), 2 * eps * h)


def renoise_kernel(interpolant: Interpolant, endpoint: Tensor, t_next: float) -> Kernel:
    """Jump to the look-ahead's endpoint and add fresh noise: N(beta endpoint, alpha^2 I) at t_next.

    With an exact flow map it keeps the model's marginals at any step size (multi-step consistency
    sampling, arXiv 2303.01469), so few steps go far.
    """
    return Kernel(_at(interpolant.beta, t_next) * endpoint, _at(interpolant.alpha, t_next) ** 2)


def kernel(
    name: str, interpolant: Interpolant, x: Tensor, now: Evaluation, t: float, t_next: float, eps: float
) -> Kernel:
    """The transition called ``name`` from what is known at x."""
    if name == "renoise":
        assert now.endpoint is not None
        return renoise_kernel(interpolant, now.endpoint, t_next)
    assert now.velocity is not None
    return sde_kernel(interpolant, x, now.velocity, t, t_next, eps)


def noisy_steps(noises: tuple[float, ...], name: str) -> tuple[bool, ...]:
    """Which steps draw noise under the kernel called ``name``."""
    last = len(noises) - 1
    return tuple(k < last if name == "renoise" else eps > 0 for k, eps in enumerate(noises))


def interpolate_towards(
    interpolant: Interpolant, x: Tensor, endpoint: Tensor, t: float, t_next: float
) -> Tensor:
    """Move along the interpolant from the noise that explains x to ``endpoint``: no network."""
    noise = (x - _at(interpolant.beta, t) * endpoint) / _at(interpolant.alpha, t)
    return _at(interpolant.beta, t_next) * endpoint + _at(interpolant.alpha, t_next) * noise


def advance(
    problem: Problem, flow_map: FlowMap, x: Tensor, t: float, t_next: float, cond: Cond | None
) -> Tensor:
    """X_{t,t_next}(x) of particles (B, *D), counted."""
    size = problem.chunk_size or x.shape[0]
    rows = [slice(i, i + size) for i in range(0, x.shape[0], size)]
    problem.cost.forwards += x.shape[0]
    return torch.cat([flow_map(x[r], t, t_next, take_cond(cond, r)) for r in rows])


def _at(coefficient: Callable[[Tensor], Tensor], t: float) -> float:
    return float(coefficient(torch.tensor(t, dtype=torch.float64)))


def guided(kernel: Kernel, shift: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw x' ~ N(m + g, v I) and weigh it against N(m, v I).

    Args:
        shift: g (B, *D) or None.
        noise: standard normals (B, *D); None in a deterministic step, which takes no guidance.

    Returns:
        x' (B, *D), and log N(x'; m, v) - log N(x'; m + g, v) as float64 (B,).
    """
    B = kernel.mean.shape[0]
    zero = kernel.mean.new_zeros(B, dtype=torch.float64)
    if kernel.variance == 0 or noise is None:
        return kernel.mean, zero
    deviation = kernel.variance**0.5
    x = kernel.mean + deviation * noise
    if shift is None:
        return x, zero
    g, xi = shift.double(), noise.double()
    return x + shift, -dot(g, xi) / deviation - dot(g, g) / (2 * kernel.variance)


def exact_increment(
    before: Evaluation, after: Evaluation, strength: tuple[float, float], h: float, *, deterministic: bool
) -> Tensor:
    """The integral of lambda' f + lambda c over one step, float64 (B,), by the trapezoidal rule.

    lambda' f is integrated against d lambda, so that the schedule is never differentiated. Along a
    deterministic step the integrand is the derivative of lambda f, and its difference is the integral.
    A residual that is not known at the step's end (at t = 1, if the last step draws noise) is taken from
    its start.
    """
    a, b = strength
    assert before.value is not None and after.value is not None
    if deterministic:
        return b * after.value - a * before.value
    increment = paper_increment(before, after, strength)
    here = before.residual
    there = here if after.residual is None else after.residual
    for residual, lam in ((here, a), (there, b)):
        if residual is not None and lam != 0:
            increment = increment + (0.5 * h * lam) * residual
    return increment


def paper_increment(before: Evaluation, after: Evaluation, strength: tuple[float, float]) -> Tensor:
    """The integral of lambda' f over one step, float64 (B,): the residual of the look-ahead is left out."""
    assert before.value is not None and after.value is not None
    return 0.5 * (strength[1] - strength[0]) * (before.value + after.value)


def shift_of(
    gradient: Tensor, kernel: Kernel, h: float, strength: float, guidance: float, chi: float
) -> Tensor:
    """The guidance increment g (B, *D) = (guidance v/2 + chi h) lambda grad f; v/2 is eps h in the SDE."""
    return ((guidance * kernel.variance / 2 + chi * h) * strength) * gradient
