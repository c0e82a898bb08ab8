"""Derivatives of the look-ahead reward f: one reverse pass, or random probes where that is not enough."""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering.problem import Problem, score
from fmtt.tensor import dot64, expand_like
from fmtt.types import Cond


def reverse(
    value: Tensor, x: Tensor, t: Tensor | None, *, differentiable: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(grad_x f, d/dt f) of f (B,) by one reverse pass; ``differentiable`` records it for another.

    Args:
        t: (B,), or None where its derivative is not wanted.
    """
    if not value.requires_grad:
        raise UserError(
            "the reward has no gradient: pass gradient='none' or 'zeroth' together with weights='path'"
        )
    # Of a sum and not of a vector with ones: given a vector, torch imports sympy, for more than a second.
    wanted = (x,) if t is None else (x, t)
    d_x, *rest = torch.autograd.grad(value.sum(), wanted, create_graph=differentiable, allow_unused=True)
    if d_x is None:
        raise UserError("no gradient reaches x through the reward: pass gradient='none' and weights='path'")
    if t is None:
        return d_x, None
    return d_x, torch.zeros_like(t) if rest[0] is None else rest[0]


def laplacian(gradient: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """Hutchinson's estimate of the trace of the Hessian, float64 (B,): the mean of v . H v over probes.

    Unbiased. For independent signs v its variance per particle is 2 sum_{i != j} H_ij^2 / m with m probes:
    none in one dimension or for a reward without interactions, and less than 2 |H|^2 / m always.

    Args:
        gradient: grad_x f (B, *D), with the graph of its reverse pass.
        probes: (B, m, *D).
    """
    total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    if not gradient.requires_grad:  # f is linear in x
        return total
    for v in probes.unbind(1):
        (product,) = torch.autograd.grad(gradient, x, v, retain_graph=True, allow_unused=True)
        if product is not None:
            total = total + dot64(v, product)
    return total / probes.shape[1]


def zeroth(problem: Problem, endpoint: Tensor, cond: Cond | None, probes: Tensor) -> Tensor:
    """The reward's gradient at ``endpoint`` (B, *D) from 2 m rewards per particle and no derivative.

    (r(y + sigma v) - r(y - sigma v)) v / (2 sigma), averaged over Gaussian probes v: unbiased for the
    gradient of the reward smoothed by N(0, sigma^2 I). The antithetic pair cancels the value and every even
    order; what is left has a variance of about d |grad r|^2 / m.
    """
    sigma, total = problem.probes.scale, torch.zeros_like(endpoint)
    with torch.no_grad():
        y = endpoint.detach()
        for v in probes.unbind(1):
            difference = score(problem, y + sigma * v, cond) - score(problem, y - sigma * v, cond)
            total += expand_like(difference / (2 * sigma), v).to(v.dtype) * v
    return total / probes.shape[1]


def pull_back(endpoint: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """J^T g (B, *D) of the look-ahead's Jacobian J and a gradient g at its endpoint, by one reverse pass."""
    (found,) = torch.autograd.grad(endpoint, x, gradient, allow_unused=True)
    return torch.zeros_like(x) if found is None else found
