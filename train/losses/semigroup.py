"""Semigroup objective: one long step equals two short ones. No derivative is needed."""

from __future__ import annotations

import torch

from fmtt.flow.calculus import average_velocity
from fmtt.tensor import expand_like, take_cond
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square


def psd(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|u_{s,t} - sg[((m-s) u_{s,m} + (t-m) u_{m,t}(X_{s,m})) / (t-s)]|^2 (PSD, arXiv 2505.18825).

    m is the time sampler's ``u``: half-way (PSD-M) or uniform (PSD-U). Any flow satisfies this, so it is
    the samples with t = s, whose target is the teacher's velocity, that make it the teacher's flow.
    """
    s, m, t = times
    x = path.x_s
    with torch.no_grad():
        share = expand_like(torch.where(t > s, (m - s) / (t - s).clamp_min(1e-8), 0.5), x)
        first, _ = average_velocity(student, x, s, m, cond)
        second, _ = average_velocity(student, x + expand_like(m - s, x) * first, m, t, cond)
        target = share * first + (1 - share) * second
        rows = (t == s).nonzero().flatten()
        if len(rows):
            target[rows] = teacher(x[rows], s[rows], take_cond(cond, rows)).to(target.dtype)
    u, _ = average_velocity(student, x, s, t, cond)
    return LossOutput(mean_square(u - target), {})
