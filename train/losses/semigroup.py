"""Semigroup objectives: one long step equals two short ones. No derivative is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from fmtt.flow.calculus import average_velocity
from fmtt.tensor import expand_like
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square


def two_steps(student: FlowMap, path: PathSample, times: Times, m: Tensor, cond: Cond | None) -> LossOutput:
    """|u_{s,t} - sg[((m-s) u_{s,m} + (t-m) u_{m,t}(X_{s,m})) / (t-s)]|^2 for a time m (B,) in [s, t]."""
    s, _, t = times
    x = path.x_s
    with torch.no_grad():
        share = expand_like(torch.where(t > s, (m - s) / (t - s).clamp_min(1e-8), 0.5), x)
        first, _ = average_velocity(student, x, s, m, cond)
        second, _ = average_velocity(student, x + expand_like(m - s, x) * first, m, t, cond)
        target = share * first + (1 - share) * second
    u, _ = average_velocity(student, x, s, t, cond)
    return LossOutput(mean_square(u - target), {})


def psd_m(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """The semigroup objective with the intermediate time half-way (PSD-M, arXiv 2505.18825).

    Any flow satisfies it, whosever: a term on the diagonal must say whose flow is wanted.
    """
    return two_steps(student, path, times, (times.s + times.t) / 2, cond)


def psd_u(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """The semigroup objective with the intermediate time ``times.u``, which is to be uniform in [s, t].

    PSD-U of arXiv 2505.18825; as for :func:`psd_m`, a term on the diagonal must say whose flow is wanted.
    """
    return two_steps(student, path, times, times.u, cond)
