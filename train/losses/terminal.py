"""Terminal velocity matching: the velocity where a jump lands, anchored to data by flow matching."""

from __future__ import annotations

import torch

from fmtt.flow.calculus import partial_t
from fmtt.types import Cond, FlowMap, VelocityField
from train.losses.base import LossOutput, PathSample, Times, mean_square, sample_path


def tvm(
    student: FlowMap, teacher: VelocityField, path: PathSample, times: Times, cond: Cond | None = None
) -> LossOutput:
    """|d/dt X_{s,t}(x_s) - sg b_t(X_{s,t}(x_s))|^2 [s < t] + |u_{t,t}(I_t) - dI_t/dt|^2.

    Terminal velocity matching (TVM, arXiv 2511.19797). In the paper b_t is the student's own diagonal with
    averaged weights: ``teacher: self`` with ``ema.target_half_life``. As in its published code (lumalabs/tvm,
    training/wrapper.py) the gradient goes through the derivative, neither the landing point nor its
    velocity carries one, both terms weigh the same and the first is dropped where s = t. That code draws
    a time of its own for the second term; here it is the jump's end t, as in the paper's loss.
    """
    s, _, t = times
    landed, d_landed = partial_t(student, path.x_s, s, t, cond)
    with torch.no_grad():
        target = teacher(landed.detach(), t, cond)
    terminal = torch.where(s < t, mean_square(d_landed - target), 0.0)
    end = sample_path(student.interpolant, path.x_0, path.x_1, t)
    anchor = mean_square(student.velocity(end.x_s, t, cond) - end.velocity_s)
    return LossOutput(
        terminal + anchor, {"terminal": terminal.mean().detach(), "anchor": anchor.mean().detach()}
    )
