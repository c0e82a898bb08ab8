"""Rewards for the brightness or the colour of a part of the picture.

With w the region's weights and m = sum w its size in pixels, both in RGB units,
    brightness   r = -strength (1/m sum_p w_p luma_p - target)²         the region's mean alone counts
    colour       r = -strength 1/m sum_p w_p |rgb_p - target|² / C      every pixel counts
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import picture
from fmtt.rewards.description import Described, Description
from fmtt.rewards.picture import DEFAULT_RANGE, checked_range, positive, to_unit
from fmtt.types import Cond

Box = tuple[float, float, float, float]
Point = tuple[float, float]


class Region:
    """A part of a picture, as fractions of its sides from the top left corner; at most one form is given.

    Args:
        box: (left, top, right, bottom), each in [0, 1].
        centre: (x, y) of a disc.
        radius: of the disc, as a fraction of the shorter side.
        mask: a picture file of the images' size, or its tensor; white is inside.

    Without any of them it is the whole picture.

    Raises:
        UserError: when forms are mixed or a form is out of bounds.
    """

    def __init__(
        self,
        box: Box | None = None,
        centre: Point | None = None,
        radius: float | None = None,
        mask: str | Tensor | None = None,
    ) -> None:
        if (centre is None) != (radius is None):
            raise UserError("a disc needs both centre=x:y and radius, as fractions of the picture")
        if sum(form is not None for form in (box, centre, mask)) > 1:
            raise UserError("give one of box, centre with radius, and mask")
        if box is not None:
            left, top, right, bottom = box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise UserError(
                    "box must be left:top:right:bottom as fractions from 0 to 1 with left < right and "
                    f"top < bottom, got {':'.join(f'{v:g}' for v in box)}"
                )
        if radius is not None:
            positive("radius", radius)
        self.box, self.centre, self.radius = box, centre, radius
        self._text = mask if isinstance(mask, str) else "<tensor>"
        self.mask = None if mask is None else _mask(mask)

    def weights(self, images: Tensor) -> Tensor:
        """(H, W) for images (B, C, H, W): 1 inside, 0 outside, by pixel centres; a mask keeps its shades.

        Raises:
            UserError: when no pixel is inside, or the mask has another size.
        """
        H, W = images.shape[-2:]
        y = ((torch.arange(H, dtype=torch.float64) + 0.5) / H)[:, None]
        x = ((torch.arange(W, dtype=torch.float64) + 0.5) / W)[None, :]
        if self.mask is not None:
            if self.mask.shape != (H, W):
                h, w = self.mask.shape
                raise UserError(f"mask is {h} × {w} pixels, the images are {H} × {W}: give one of their size")
            inside = self.mask
        elif self.box is not None:
            left, top, right, bottom = self.box
            inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
        elif self.centre is not None and self.radius is not None:
            side = min(H, W)
            away = ((x - self.centre[0]) * W).square() + ((y - self.centre[1]) * H).square()
            inside = away <= (self.radius * side) ** 2
        else:
            inside = torch.ones(H, W)
        if not bool(inside.any()):
            raise UserError(f"the region holds no pixel of images of {H} × {W}; make it larger")
        return inside.to(images)

    def __str__(self) -> str:
        """The region's keys and values as a specification writes them, each after a comma."""
        if self.mask is not None:
            return f",mask={self._text}"
        if self.box is not None:
            return f",box={':'.join(f'{v:g}' for v in self.box)}"
        if self.centre is not None:
            return f",centre={':'.join(f'{v:g}' for v in self.centre)},radius={self.radius:g}"
        return ""


def _mask(mask: str | Tensor) -> Tensor:
    shades = mask if isinstance(mask, Tensor) else picture.luma(picture.load(mask))[0]
    if shades.ndim != 2 or not bool(((shades >= 0) & (shades <= 1)).all()):
        raise UserError("mask must be (height, width) with values from 0 (outside) to 1 (inside)")
    return shades


class Brightness(Described):
    """The mean brightness of a region against a target.

    Args:
        target: brightness from 0 (black) to 1 (white).
        strength: scale of the reward; its range is [-strength, 0] for pictures within black and white.
        box: left:top:right:bottom of the region as fractions from the top left; the whole picture if omitted.
        centre: x:y of a disc instead.
        radius: of the disc, as a fraction of the shorter side.
        mask: a picture of the images' size instead, white inside.
        value_range: the model values of black and white.
    """

    description = Description(
        "mean brightness of a region", True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def __init__(
        self,
        target: float = 1.0,
        strength: float = 100.0,
        box: Box | None = None,
        centre: Point | None = None,
        radius: float | None = None,
        mask: str | Tensor | None = None,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        self.region = Region(box, centre, radius, mask)
        self.target = _shade("target", target)
        self.strength = positive("strength", strength)
        self.value_range = checked_range(value_range)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, C, H, W)."""
        rgb = to_unit(x1, self.value_range)
        weights = self.region.weights(rgb)
        mean = (picture.luma(rgb)[:, 0] * weights).sum((1, 2)) / weights.sum()
        return -self.strength * (mean - self.target).square()

    def __repr__(self) -> str:
        return f"brightness:target={self.target:g},strength={self.strength:g}{self.region}"


class Colour(Described):
    """The colour of every pixel of a region against a target.

    Args:
        rgb: red:green:blue, each from 0 to 1; one number for grey images.
        strength: scale of the reward; its range is [-strength, 0] for pictures within black and white.
        box: left:top:right:bottom of the region as fractions from the top left; the whole picture if omitted.
        centre: x:y of a disc instead.
        radius: of the disc, as a fraction of the shorter side.
        mask: a picture of the images' size instead, white inside.
        value_range: the model values of black and white.
    """

    description = Description("colour of a region", True, value_range=(-math.inf, 0.0), space="pixels")

    def __init__(
        self,
        rgb: tuple[float, ...],
        strength: float = 100.0,
        box: Box | None = None,
        centre: Point | None = None,
        radius: float | None = None,
        mask: str | Tensor | None = None,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        self.region = Region(box, centre, radius, mask)
        self.rgb = tuple(_shade("rgb", shade) for shade in rgb)
        self.strength = positive("strength", strength)
        self.value_range = checked_range(value_range)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, C, H, W)."""
        values = to_unit(x1, self.value_range)
        if len(self.rgb) != values.shape[1]:
            raise UserError(f"rgb has {len(self.rgb)} values, the images have {values.shape[1]} channels")
        weights = self.region.weights(values)
        square = (values - values.new_tensor(self.rgb)[:, None, None]).square().mean(1)  # (B, H, W)
        return -self.strength * (square * weights).sum((1, 2)) / weights.sum()

    def __repr__(self) -> str:
        rgb = ":".join(f"{shade:g}" for shade in self.rgb)
        return f"colour:rgb={rgb},strength={self.strength:g}{self.region}"


def _shade(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie between 0 (black) and 1 (white), got {value:g}")
    return float(value)
