"""Linear inverse problems: the Gaussian log-likelihood of a measurement y = A rgb + noise, as a reward.

    r(x) = -|y - A rgb(x)|² / (2 noise²)
with rgb(x) the image in RGB units. Tilting by r samples the posterior of the image given y, and log Z plus
:meth:`LinearInverse.log_normaliser` is the log-evidence of y. The constant is left out of r, whose largest
value is then 0, an image that explains the measurement perfectly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import picture
from fmtt.rewards.description import Described, Description
from fmtt.rewards.picture import DEFAULT_RANGE, checked_range, positive, to_unit
from fmtt.rewards.region import Box, Point, Region
from fmtt.types import Cond


class LinearInverse(Described, ABC):
    """Likelihood of a measurement; a subclass says what ``forward``, the linear operator A, does.

    Args:
        measurement: y (C, H', W') in RGB units, or the file of a picture.
        noise: its standard deviation in RGB units.
        value_range: the model values of black and white.
    """

    def __init__(
        self,
        measurement: str | Tensor,
        noise: float = 0.05,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        given = measurement if isinstance(measurement, Tensor) else picture.load(measurement)
        if given.ndim != 3 or not bool(given.isfinite().all()):
            raise UserError(
                f"measurement must be finite, of shape (channels, height, width), got {tuple(given.shape)}"
            )
        self._text = measurement if isinstance(measurement, str) else "<tensor>"
        self.measurement = given.detach()
        self.noise = positive("noise", noise)
        self.value_range = checked_range(value_range)

    @abstractmethod
    def forward(self, rgb: Tensor) -> Tensor:
        """A rgb: (B, C, H, W) to (B, C, H', W'), where what is not measured is 0."""

    def observed(self, target: Tensor) -> Tensor:
        """y as far as it is measured: (C, H', W')."""
        return target

    def num_measured(self, images: Tensor) -> int:
        """How many numbers of y are measured in images (B, C, H, W)."""
        return self.forward(images[:1]).numel()

    def log_normaliser(self, images: Tensor) -> float:
        """log of the Gaussian density's constant for images (B, C, H, W)."""
        return -self.num_measured(images) / 2 * math.log(2 * math.pi * self.noise**2)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, C, H, W)."""
        rgb = to_unit(x1, self.value_range)
        measured = self.forward(rgb)
        target = picture.with_channels(self.measurement.to(measured), rgb.shape[1])
        if target.shape != measured.shape[1:]:
            raise UserError(
                f"the measurement has shape {tuple(target.shape)}, but the samples are measured as "
                f"{tuple(measured.shape[1:])} (channels, height, width)"
            )
        misfit = (self.observed(target) - measured).square().flatten(1).sum(1)
        return -misfit / (2 * self.noise**2)

    def _keys(self) -> str:
        return f"measurement={self._text},noise={self.noise:g}"


class SuperResolution(LinearInverse):
    """A low-resolution picture: every pixel is the mean of factor × factor pixels.

    Args:
        measurement: the file of the low-resolution picture, or its tensor (C, H / factor, W / factor).
        factor: pixels of the image per pixel of the measurement, along each side.
        noise: standard deviation of the measurement in RGB units.
        value_range: the model values of black and white.
    """

    description = Description(
        "likelihood of a low-resolution picture", True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def __init__(
        self,
        measurement: str | Tensor,
        factor: int = 4,
        noise: float = 0.05,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        super().__init__(measurement, noise, value_range)
        if factor < 1:
            raise UserError(f"factor must be at least 1, got {factor}")
        self.factor = factor

    def forward(self, rgb: Tensor) -> Tensor:
        H, W = rgb.shape[-2:]
        if H % self.factor or W % self.factor:
            raise UserError(f"factor must divide the images' sides, {H} × {W}, got {self.factor}")
        return F.avg_pool2d(rgb, self.factor)

    def __repr__(self) -> str:
        return f"super_resolution:{self._keys()},factor={self.factor}"


class Inpainting(LinearInverse):
    """A picture with a hole: every pixel outside the region is known.

    Args:
        measurement: the file of the picture, of the images' size, or its tensor; its hole is ignored.
        noise: standard deviation of the known pixels in RGB units.
        box: left:top:right:bottom of the hole as fractions from the top left.
        centre: x:y of a round hole instead.
        radius: of the round hole, as a fraction of the shorter side.
        mask: a black-and-white picture of the images' size instead, white where the hole is.
        value_range: the model values of black and white.
    """

    description = Description(
        "likelihood of a picture with a hole", True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def __init__(
        self,
        measurement: str | Tensor,
        noise: float = 0.05,
        box: Box | None = None,
        centre: Point | None = None,
        radius: float | None = None,
        mask: str | Tensor | None = None,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        super().__init__(measurement, noise, value_range)
        if box is None and centre is None and mask is None:
            raise UserError("inpainting needs its hole: give box, centre with radius, or mask")
        self.hole = Region(box, centre, radius, mask)

    def known(self, images: Tensor) -> Tensor:
        """(H, W) for images (B, C, H, W): 1 where a pixel is known, 0 in the hole."""
        return (self.hole.weights(images) < 0.5).to(images)

    def forward(self, rgb: Tensor) -> Tensor:
        return rgb * self.known(rgb)

    def observed(self, target: Tensor) -> Tensor:
        return target * self.known(target)

    def num_measured(self, images: Tensor) -> int:
        return images.shape[1] * int(self.known(images).sum())

    def __repr__(self) -> str:
        return f"inpainting:{self._keys()}{self.hole}"


class Blur(LinearInverse):
    """A blurred picture: a Gaussian kernel, the picture mirrored at its edges.

    Args:
        measurement: the file of the blurred picture, of the images' size, or its tensor.
        width: standard deviation of the kernel in pixels; it is cut off after three of them.
        noise: standard deviation of the measurement in RGB units.
        value_range: the model values of black and white.
    """

    description = Description(
        "likelihood of a blurred picture", True, value_range=(-math.inf, 0.0), space="pixels"
    )

    def __init__(
        self,
        measurement: str | Tensor,
        width: float = 1.0,
        noise: float = 0.05,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        super().__init__(measurement, noise, value_range)
        self.width = positive("width", width)

    def kernel(self) -> Tensor:
        """The one-dimensional kernel (2 R + 1,), float64, summing to 1."""
        reach = math.ceil(3 * self.width)
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = torch.exp(-offsets.square() / (2 * self.width**2))
        return weights / weights.sum()

    def forward(self, rgb: Tensor) -> Tensor:
        B, C, H, W = rgb.shape
        kernel = self.kernel().to(rgb)
        reach = len(kernel) // 2
        if reach >= min(H, W):
            raise UserError(f"width={self.width:g} blurs beyond images of {H} × {W} pixels; give less")
        flat = F.pad(rgb.reshape(B * C, 1, H, W), (reach,) * 4, mode="reflect")
        blurred = F.conv2d(F.conv2d(flat, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))
        return blurred.reshape(B, C, H, W)

    def __repr__(self) -> str:
        return f"blur:{self._keys()},width={self.width:g}"
