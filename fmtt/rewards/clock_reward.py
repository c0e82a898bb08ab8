"""A differentiable, network-free reading of a clock's two hands, as a reward.

The hour hand is the reddish mass inside the face, the minute hand the bluish mass; a hand's reading is
the direction of its mass-weighted position. The reward is
    r = -sharpness [HOUR_SHARE (1 - cos of hour-hand error) + (1 - HOUR_SHARE) (1 - cos of minute-hand error)]
with softened cosines, so an image without hands scores like one whose hands are a quarter turn off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import clock
from fmtt.rewards.description import Described, Description
from fmtt.types import Cond

HOUR_SHARE = 0.8
"""The hour hand moves 5 degrees in ten minutes and the minute hand 60: this evens them out."""
COLOUR_FLOOR = 0.06
"""Difference of red and blue below which a pixel counts as uncoloured."""
READING_RADII = (0.10, 0.78)
SOFTENING = 0.1
"""Size of a hand's first moment, relative to a whole hand's, at which a reading loses its weight."""


def hand_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """First moments (B, 2) of the hour- and the minute-coloured mass, x to the right, y upward."""
    x, y = clock.pixel_grid(images.shape[-1], device=images.device)
    inner, outer = READING_RADII
    radius = (x.square() + y.square()).sqrt()
    inside = ((radius > inner) & (radius < outer)).to(images.dtype)
    positions = (torch.stack([x, y], dim=-1) * inside[..., None]).to(images.dtype)  # (H, W, 2)
    redness = (images[:, 0] - images[:, 2]) / clock.SCALE
    cell = (2 / images.shape[-1]) ** 2
    hour, minute = (redness - COLOUR_FLOOR).relu(), (-redness - COLOUR_FLOOR).relu()
    return (
        torch.einsum("bhw,hwk->bk", hour, positions) * cell,
        torch.einsum("bhw,hwk->bk", minute, positions) * cell,
    )


def read_hands(images: Tensor) -> tuple[Tensor, Tensor]:
    """Hour- and minute-hand angles (B,) in radians clockwise from 12 o'clock."""
    hour, minute = hand_moments(images)
    return torch.atan2(hour[:, 0], hour[:, 1]), torch.atan2(minute[:, 0], minute[:, 1])


class ClockReward(Described):
    """Reward for clocks that show a given time.

    Args:
        time: the target, ``h:mm``.
        sharpness: scale of the reward; its range is [-2 sharpness, 0].
    """

    description = Description(
        "clocks that show a given time", differentiable=True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def __init__(self, time: str = "3:47", sharpness: float = 40.0) -> None:
        if not 0 < sharpness < math.inf:
            raise UserError(f"sharpness must be positive and finite, got {sharpness}")
        self.target = clock.parse_time(time)
        self.sharpness = float(sharpness)
        whole = clock.render(clock.Clock(torch.tensor([100.0]), torch.full((1, clock.NUM_SHADES), 0.5)))
        self._softening = [SOFTENING * float(m.norm()) for m in hand_moments(whole)]

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, 3, H, W)."""
        angles = clock.hand_angles(torch.tensor(self.target, dtype=torch.float64))
        score = x1.new_zeros(x1.shape[0])
        shares = (HOUR_SHARE, 1 - HOUR_SHARE)
        for moment, angle, share, soft in zip(hand_moments(x1), angles, shares, self._softening, strict=True):
            towards = moment[:, 0] * torch.sin(angle).to(x1) + moment[:, 1] * torch.cos(angle).to(x1)
            cosine = towards / (moment.square().sum(1) + soft**2).sqrt()
            score = score - self.sharpness * share * (1 - cosine)
        return score

    def __repr__(self) -> str:
        return f"clock:time={clock.format_time(self.target)},sharpness={self.sharpness:g}"


def tilted_time_density(reward: ClockReward, *, step: float = 0.5, shades: int = 16) -> tuple[Tensor, Tensor]:
    """The closed-form tilted law p(time) e^{r(time)} / Z on a grid of times.

    Returns:
        times (M,) in minutes, and float64 probabilities (M,) of cells of width ``step``, summing to 1.
        e^r is averaged over ``shades`` draws of the colours, which move r by less than its resolution.
    """
    times = torch.arange(0, clock.MINUTES, step)
    generator = torch.Generator().manual_seed(0)
    log_weight = torch.empty(shades, len(times), dtype=torch.float64)
    for k in range(shades):
        shade = torch.rand(1, clock.NUM_SHADES, generator=generator).expand(len(times), -1)
        log_weight[k] = reward(clock.render(clock.Clock(times, shade))).double()
    log_p = clock.time_density(times).log() + log_weight.logsumexp(0)
    return times, torch.softmax(log_p, 0)
