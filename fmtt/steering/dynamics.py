"""One step of Flow Map Trajectory Tilting (arXiv 2511.22688): where particles go and what they weigh.

With r_t = lambda(t) f_t, f_t = r(l_t(x)), the residual c_t = d/dt f_t + b . grad f_t and
L f = Laplacian f + s . grad f, the guided SDE is
    dx = [b + eps (s + grad r_t) + chi grad r_t] dt + sqrt(2 eps) dW
and the log-weights are
    exact   dA = (lambda' f + lambda c + chi lambda (L f + lambda |grad f|^2)) dt
                                                            any smooth look-ahead with l_1 = id
    paper   dA = lambda' f dt                               right where c = 0: an exact flow map
    path    dA = r_{k+1} - r_k + log N(x'; m, v) - log N(x'; m + g, v)    any guidance, any step
Both derivatives in c come from the one reverse pass that guidance pays for. The Laplacian, wanted only where
chi != 0, is estimated by random probes, each a second reverse pass: dA stays unbiased, and since the noise
of a step's dA is of the order of the step, so are the weights as steps shrink.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmtt.steering import draws, gradient
from fmtt.steering.kernel import (
    Kernel,
    interpolate_towards,
    kernel,
    noisy_steps,
    renoise_kernel,
    sde_kernel,
)
from fmtt.steering.problem import Evaluation, Needs, Probes, Problem, in_chunks, score
from fmtt.steering.shift import guided, shift_of
from fmtt.steering.weights import exact_increment, paper_increment
from fmtt.tensor import dot64, expanded_time, take_cond
from fmtt.types import Cond, FlowMap

__all__ = [
    "Evaluation",
    "Kernel",
    "Needs",
    "Probes",
    "Problem",
    "advance",
    "evaluate",
    "exact_increment",
    "guided",
    "in_chunks",
    "interpolate_towards",
    "kernel",
    "noisy_steps",
    "paper_increment",
    "renoise_kernel",
    "score",
    "sde_kernel",
    "shift_of",
]


def evaluate(
    problem: Problem,
    x: Tensor,
    t: float,
    needs: Needs,
    cond: Cond | None = None,
    generator: torch.Generator | None = None,
    total: int | None = None,
) -> Evaluation:
    """Velocity, look-ahead reward and its derivatives of particles x (B, *D) at time t.

    At t = 1 the look-ahead is the identity and no network is called.

    Args:
        cond: conditioning of these particles; the problem's own if omitted.
        generator: of the probes, where the problem's gradient or a Laplacian needs any. They are drawn for
            all particles at once, so chunks and ranks see the same ones.
        total: how many particles all ranks hold together; as many as x if omitted.
    """
    cond = problem.cond if cond is None else cond

    def work(x: Tensor, cond: Cond | None, probes: Tensor | None) -> Evaluation:
        if t >= 1:
            return Evaluation(value=score(problem, x, cond).double(), endpoint=x if needs.endpoint else None)
        return _evaluate(problem, x, expanded_time(t, x), needs, cond, probes)

    probes = _draw(problem, x, t, needs, generator, len(x) if total is None else total)
    with problem.ranks.together(f"looking ahead from t={t:g}"):
        if not len(x):  # a rank may hold none of a search's survivors
            return _nothing(problem, x, t, needs)
        return in_chunks(work, x, cond, problem.chunk_size, probes)


def _draw(
    problem: Problem, x: Tensor, t: float, needs: Needs, generator: torch.Generator | None, total: int
) -> Tensor | None:
    """This rank's random directions (B, m, *D) of one evaluation, or None where it needs none."""
    zeroth = problem.probes.zeroth and needs.gradient
    if t >= 1 or not (zeroth or needs.laplacian):
        return None
    shape = (total, problem.probes.count, *x.shape[1:])
    kind = draws.normal if zeroth else draws.signs
    return problem.ranks.share(kind(shape, generator, x.device, x.dtype))


def _nothing(problem: Problem, x: Tensor, t: float, needs: Needs) -> Evaluation:
    """What is known of no particles: the fields that an evaluation of some would fill, with no rows."""
    none = x.new_empty(0, dtype=torch.float64)
    if t >= 1:
        return Evaluation(value=none, endpoint=x if needs.endpoint else None)
    return Evaluation(
        x if needs.velocity else None,
        none if needs.value or needs.gradient else None,
        x if needs.gradient else None,
        none if needs.residual else None,
        x if needs.endpoint else None,
        none if needs.laplacian else None,
    )


def _evaluate(
    problem: Problem, x: Tensor, t: Tensor, needs: Needs, cond: Cond | None, probes: Tensor | None
) -> Evaluation:
    lookahead, cost, B = problem.lookahead, problem.cost, x.shape[0]
    looks = needs.value or needs.gradient or needs.endpoint
    shares = looks and lookahead.uses_velocity
    zeroth = needs.gradient and problem.probes.zeroth
    value = grad = d_t = residual = endpoint = b = laplacian = None
    # The fused attention kernels have no second derivative.
    plain = sdpa_kernel(SDPBackend.MATH) if needs.laplacian else nullcontext()
    if looks:
        with torch.set_grad_enabled(needs.gradient), plain:
            x_, t_ = x.detach(), t
            if needs.gradient:
                x_, t_ = x_.requires_grad_(), t.clone().requires_grad_() if needs.residual else t
            b = problem.velocity(x_, t_, cond) if shares else None
            endpoint = lookahead(x_, t_, cond, b)
            passes = lookahead.passes + shares
            cost.forwards += B * passes
            if needs.value or needs.gradient:
                value = score(problem, endpoint.detach() if zeroth else endpoint, cond)
            if needs.gradient:
                assert value is not None
                reverses = recomputations = 1
                if zeroth:
                    assert probes is not None
                    grad = gradient.zeroth(problem, endpoint, cond, probes)
                    grad = gradient.pull_back(endpoint, x_, grad)
                else:
                    grad, d_t = gradient.reverse(
                        value, x_, t_ if needs.residual else None, differentiable=needs.laplacian
                    )
                if needs.laplacian:
                    assert probes is not None
                    laplacian = gradient.laplacian(grad, x_, probes)
                    reverses += 2 * probes.shape[1]  # back through the reverse pass, and the forward again
                    recomputations += probes.shape[1]
                cost.backwards += B * passes * reverses
                if problem.recomputing is not None:
                    cost.forwards += B * problem.recomputing.recomputed * recomputations
    if needs.velocity and b is None:
        b = problem.velocity(x, t, cond)
        cost.forwards += B
    b = None if b is None else b.detach()
    grad = None if grad is None else grad.detach()
    if d_t is not None:
        assert b is not None and grad is not None
        residual = d_t.detach().double() + dot64(b, grad)
    langevin = None
    if laplacian is not None:
        assert b is not None and grad is not None
        score_ = problem.interpolant.score(b, x, t)
        langevin = laplacian + dot64(score_, grad)
    return Evaluation(
        b if needs.velocity else None,
        None if value is None else value.detach().double(),
        grad,
        residual,
        endpoint.detach() if needs.endpoint and endpoint is not None else None,
        langevin,
    )


def advance(
    problem: Problem, flow_map: FlowMap, x: Tensor, t: float, t_next: float, cond: Cond | None
) -> Tensor:
    """X_{t,t_next}(x) of particles (B, *D), counted."""
    size = problem.chunk_size or x.shape[0]
    rows = [slice(i, i + size) for i in range(0, x.shape[0], size)]
    problem.cost.forwards += x.shape[0]
    return torch.cat([flow_map(x[r], t, t_next, take_cond(cond, r)) for r in rows])
