"""Rewards for pictures that equal, or mirror in negative, their own image under a symmetry of the square.

With T a reflection or a rotation of the pixel grid and rgb the image in RGB units,
    r = -strength mean (rgb - T rgb)²        symmetric: invariant under T
    r = -strength mean (rgb + T rgb - 1)²    antisymmetric: T turns the picture into its negative
over all channels and pixels: the largest value, 0, is reached exactly where the picture has the property.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards.description import Described, Description
from fmtt.rewards.picture import DEFAULT_RANGE, checked_range, positive, to_unit
from fmtt.types import Cond

Axis = Literal["vertical", "horizontal"]
FLIPPED = {"vertical": -1, "horizontal": -2}
"""The dimension that a reflection across each axis reverses: across the vertical axis left meets right."""


def reflect(images: Tensor, axis: str) -> Tensor:
    """Images (..., H, W) reflected across the vertical or the horizontal axis through the centre.

    Raises:
        UserError: when the axis is neither.
    """
    if axis not in FLIPPED:
        raise UserError(f"axis must be vertical or horizontal, got {axis!r}")
    return images.flip(FLIPPED[axis])


def mean_square(difference: Tensor) -> Tensor:
    """(B, ...) to the mean of squares per sample, (B,)."""
    return difference.square().flatten(1).mean(1)


class _Mirrored(Described, ABC):
    """Minus ``strength`` times the mean square of what differs between an image and its mirror image."""

    def __init__(
        self,
        axis: Axis = "vertical",
        strength: float = 1000.0,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        reflect(torch.zeros(1, 1), axis)
        self.axis = axis
        self.strength = positive("strength", strength)
        self.value_range = checked_range(value_range)

    @abstractmethod
    def difference(self, rgb: Tensor, mirrored: Tensor) -> Tensor:
        """What should vanish, of images in [0, 1]."""

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, C, H, W)."""
        rgb = to_unit(x1, self.value_range)
        return -self.strength * mean_square(self.difference(rgb, reflect(rgb, self.axis)))

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}:axis={self.axis},strength={self.strength:g}"


class Symmetry(_Mirrored):
    """Mirror symmetry across an axis through the centre.

    Args:
        axis: "vertical" (left mirrors right) or "horizontal" (top mirrors bottom).
        strength: scale of the reward.
        value_range: the model values of black and white.
    """

    description = Description(
        "mirror symmetry across an axis", True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def difference(self, rgb: Tensor, mirrored: Tensor) -> Tensor:
        return rgb - mirrored


class Antisymmetry(_Mirrored):
    """Mirror antisymmetry: each half is the negative of the other's mirror image.

    Args:
        axis: "vertical" (left against right) or "horizontal" (top against bottom).
        strength: scale of the reward.
        value_range: the model values of black and white.
    """

    description = Description(
        "each half is the mirrored negative of the other", True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def difference(self, rgb: Tensor, mirrored: Tensor) -> Tensor:
        return rgb + mirrored - 1


class Rotation(Described):
    """Invariance under a rotation about the centre by a multiple of 90 degrees.

    Args:
        degrees: 90, 180 or 270; a quarter turn needs square images.
        strength: scale of the reward.
        value_range: the model values of black and white.
    """

    description = Description(
        "invariance under a rotation by 90, 180 or 270 degrees",
        True,
        value_range=(-math.inf, 0.0),
        space="pixels",
    )

    def __init__(
        self,
        degrees: int = 180,
        strength: float = 1000.0,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        if degrees not in (90, 180, 270):
            raise UserError(f"degrees must be 90, 180 or 270, got {degrees}")
        self.degrees = degrees
        self.strength = positive("strength", strength)
        self.value_range = checked_range(value_range)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, C, H, W)."""
        rgb = to_unit(x1, self.value_range)
        if self.degrees != 180 and rgb.shape[-1] != rgb.shape[-2]:
            raise UserError(f"a rotation by {self.degrees} degrees needs square images; give degrees=180")
        return -self.strength * mean_square(rgb - rgb.rot90(self.degrees // 90, (-2, -1)))

    def __repr__(self) -> str:
        return f"rotation:degrees={self.degrees},strength={self.strength:g}"
