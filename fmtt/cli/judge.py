"""Who reads the samples of a steering command, beside the reward that was optimised."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from fmtt.cli.model import Model
from fmtt.errors import UserError
from fmtt.rewards import clock, clock_judge
from fmtt.rewards.clock_reward import ClockReward
from fmtt.types import Reward


class ClockJudge:
    """Reads the samples by rendering match, which shares nothing with the reward.

    Args:
        target: the time to hit in minutes, or None where the reward names none.
        tolerance: in minutes.
    """

    def __init__(self, target: float | None, tolerance: float) -> None:
        self.target, self.tolerance = target, tolerance

    def summary(self, images: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
        """Weighted share of readable clocks and of hits."""
        reading = clock_judge.read(images)
        n = len(images)
        w = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights.double().cpu()
        found: dict[str, Any] = {"judge": "clock", "readable": float(w[reading.readable].sum())}
        if self.target is not None:
            error = clock.time_difference(reading.time, self.target).abs()
            hit = reading.readable & (error <= self.tolerance)
            found |= {"target": clock.format_time(self.target), "tolerance_minutes": self.tolerance}
            found["hit_rate"] = float(w[hit].sum())
        return found

    def captions(self, images: Tensor) -> list[str]:
        """The time read from each image, or ``?``."""
        return clock_judge.captions(images)


def judge(args: Namespace, model: Model, reward: Reward) -> ClockJudge | None:
    """The judge that --judge asks for; ``auto`` is the clock's for a clock reward, else none.

    Raises:
        UserError: when the samples are no clock images.
    """
    name = args.judge
    if name == "auto":
        name = "clock" if isinstance(reward, ClockReward) else "none"
    if name == "none":
        return None
    shape = model.map.data_shape
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise UserError(f"--judge clock reads square RGB images, the export makes {shape}; give --judge none")
    return ClockJudge(reward.target if isinstance(reward, ClockReward) else None, args.tolerance)
