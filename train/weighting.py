"""How much each (s, t) counts in the mean over a batch."""

from __future__ import annotations

from torch import Tensor

from train.losses.base import Times


def time_left_weight(times: Times, power: float, floor: float = 0.02) -> Tensor:
    """(1 - t)^power, shape (B,).

    Objectives are written for velocities, and near t = 1 a large error of the velocity is a small error
    of the endpoint: power 2 weighs the endpoint that a velocity points to, power 0 the velocity itself.
    """
    return (1 - times.t).clamp_min(floor).pow(power)
