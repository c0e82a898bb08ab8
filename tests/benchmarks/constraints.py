"""Three constraints on a clock, each with a reward and with a check that shares nothing with the reward.

time       reads 3:47            reward: the hands' directions     check: the reading, within ten minutes
hand       an orange hour hand   reward: mean colour of red pixels check: colour fitted to the rendering
rotation   looks the same upside reward: rgb minus rgb turned by   check: the same of the fitted rendering,
           down as far as it can 180 degrees, over raw pixels      among the lowest fifth of such clocks
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.rewards import Composite, clock, clock_judge
from fmtt.rewards.clock_reward import COLOUR_FLOOR, READING_RADII, ClockReward
from fmtt.rewards.description import Described, Description
from fmtt.rewards.symmetry import Rotation
from fmtt.types import Cond, Reward

TARGET, TOLERANCE = "3:47", 10.0
ORANGE = 0.8
"""Shade of the hour hand (0 red, 1 orange) from which it counts as orange: a fifth of all clocks."""
LOWEST = 0.2
"""Share of clocks near the target that count as invariant under the rotation."""
SHARPNESS, HAND_STRENGTH, ROTATION_STRENGTH = 40.0, 300.0, 1000.0
NAMES = ("time", "hand", "rotation")


class HandColour(Described):
    """The mean colour of the hour hand's pixels against that of an orange hand.

    With m the redness of a pixel inside the face,
        r = -strength |sum m² rgb / (sum m² + softening) - target|².

    Args:
        strength: scale of the reward.
    """

    description = Description(
        "clocks with an orange hour hand", differentiable=True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def __init__(self, strength: float = HAND_STRENGTH) -> None:
        self.strength, self.softening = strength, 0.0
        time, shades = torch.tensor([clock.parse_time(TARGET)]), torch.tensor([[0.5, 0.5, 1.0, 0.5]])
        mass, colour = self._hand(clock.render(clock.Clock(time, shades)))
        self.target, self.softening = colour[0], 0.01 * float(mass)

    def _hand(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mass (B,) and mean colour (B, 3) of the red pixels."""
        rgb = clock.unscale(images)
        x, y = clock.pixel_grid(images.shape[-1], device=images.device)
        radius = (x.square() + y.square()).sqrt()
        inside = ((radius > READING_RADII[0]) & (radius < READING_RADII[1])).to(rgb)
        red = ((rgb[:, 0] - rgb[:, 2] - COLOUR_FLOOR).relu() * inside).square()  # (B, H, W)
        mass = red.sum((1, 2))
        return mass, (rgb * red[:, None]).sum((2, 3)) / (mass + self.softening)[:, None]

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, 3, H, W)."""
        return -self.strength * (self._hand(x1)[1] - self.target.to(x1)).square().sum(1)

    def __repr__(self) -> str:
        return f"hand:strength={self.strength:g}"


def reward(count: int) -> Reward:
    """The sum of the first ``count`` constraints' rewards."""
    parts: dict[str, Reward] = {
        "time": ClockReward(TARGET, SHARPNESS),
        "hand": HandColour(),
        "rotation": Rotation(180, ROTATION_STRENGTH, clock.VALUE_RANGE),
    }
    return Composite({name: parts[name] for name in NAMES[:count]})


class Fit(NamedTuple):
    """What explains images (B,): a reading, the hour hand's shade, the asymmetry of the fitted rendering."""

    reading: clock_judge.Reading
    shade: Tensor
    asymmetry: Tensor


def fit(images: Tensor) -> Fit:
    """Read the time by rendering match, then fit the parts' colours to it by least squares."""
    images = images.detach().float().cpu().nan_to_num(0, 0, 0)
    reading = clock_judge.read(images)
    layers = clock.layer_weights(reading.time, images.shape[-1])  # (B, 6, H, W)
    pixels = clock.unscale(images).flatten(2).transpose(1, 2)  # (B, H W, 3)
    colours = torch.linalg.lstsq(layers.flatten(2).transpose(1, 2), pixels).solution  # (B, 6, 3)
    start = torch.tensor(clock.HOUR[0])
    along = torch.tensor(clock.HOUR[1]) - start
    shade = (colours[:, 4] - start) @ along / along.square().sum()
    return Fit(reading, shade, asymmetry(torch.einsum("bkhw,bkc->bchw", layers, colours)))


def asymmetry(rgb: Tensor) -> Tensor:
    """Mean square difference (B,) of pictures (B, 3, H, W) and themselves turned by 180 degrees."""
    return (rgb - rgb.flip((-2, -1))).square().mean((1, 2, 3))


def checks(images: Tensor, count: int = len(NAMES)) -> dict[str, Tensor]:
    """Which of the first ``count`` constraints each image meets, (B,) bool by name, and whether ``all``.

    An image that is not ``readable`` as a clock meets none, whatever its rewards.
    """
    found = fit(images)
    error = clock.time_difference(found.reading.time, clock.parse_time(TARGET)).abs()
    met = {
        "time": error <= TOLERANCE,
        "hand": found.shade >= ORANGE,
        "rotation": found.asymmetry <= near_target().limit,
    }
    met = {name: met[name] & found.reading.readable for name in NAMES[:count]}
    return {"readable": found.reading.readable, **met, "all": torch.stack(list(met.values())).all(0)}


class NearTarget(NamedTuple):
    """Of true clocks: the asymmetry that counts as low, and the share that meets 1, 2, 3 constraints."""

    limit: float
    mass: tuple[float, ...]


@lru_cache(maxsize=1)
def near_target(count: int = 2000) -> NearTarget:
    """Closed-form times and shades, rendered; no model."""
    generator = torch.Generator().manual_seed(0)
    target = clock.parse_time(TARGET)
    time = target + TOLERANCE * (2 * torch.rand(count, generator=generator) - 1)
    shades = torch.rand(count, clock.NUM_SHADES, generator=generator)
    values = asymmetry(clock.unscale(clock.render(clock.Clock(time, shades))))
    limit = float(values.quantile(LOWEST))
    orange = shades[:, 2] >= ORANGE
    window = float(clock.time_density(time).mean()) * 2 * TOLERANCE
    shares = (1.0, float(orange.float().mean()), float((orange & (values <= limit)).float().mean()))
    return NearTarget(limit, tuple(window * share for share in shares))
