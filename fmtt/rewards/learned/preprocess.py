"""What an image processor of transformers does to an image, differentiably: resize, crop, normalise.

The settings are read from the model's own processor. Before its first use at an image size the result is
compared with the processor's on a random image, so that a processor that does something else is refused
rather than imitated wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards.learned.resample import resize, straight_through

TOLERANCE = 1e-3
"""Largest accepted difference from the processor's own pixel values."""


def to_levels(rgb: Tensor, *, rounding: bool = False) -> Tensor:
    """RGB in [0, 1], clipped, as levels in [0, 255]; if asked rounded, with a straight-through gradient."""
    levels = rgb.clamp(0, 1) * 255
    return straight_through(levels, levels.round()) if rounding else levels


def random_picture(height: int, width: int) -> Tensor:
    """An image (3, height, width) of whole levels in [0, 255] as RGB in [0, 1], always the same."""
    generator = torch.Generator().manual_seed(height * 100_003 + width)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8).float() / 255


def as_array(rgb: Tensor) -> Any:
    """One image (3, H, W) in [0, 1] as a numpy array (H, W, 3) of bytes, which is what processors take."""
    return (rgb.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


class Normalise:
    """Levels to a network's units: times ``rescale_factor``, minus the mean, over the standard deviation."""

    def __init__(self, processor: Any) -> None:
        scale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (0.0, 1.0) if not processor.do_normalize else (processor.image_mean, processor.image_std)
        self.scale = float(scale)
        self.mean = torch.as_tensor(mean, dtype=torch.float64).reshape(-1, 1, 1)
        self.std = torch.as_tensor(std, dtype=torch.float64).reshape(-1, 1, 1)

    def __call__(self, levels: Tensor) -> Tensor:
        """Levels (..., 3, H, W) to pixel values of the same shape."""
        return (levels * self.scale - self.mean.to(levels)) / self.std.to(levels)


class ResizeAndCrop:
    """Resize, central crop and normalisation as CLIP's, BLIP's and SigLIP's processors do them.

    Args:
        processor: an image processor of transformers (its Pillow variant).
        rounding: round to 8 bits wherever the processor does.
    """

    def __init__(self, processor: Any, *, rounding: bool = False) -> None:
        self.size = dict(processor.size) if processor.do_resize else None
        crop = getattr(processor, "do_center_crop", None)
        self.crop = (processor.crop_size["height"], processor.crop_size["width"]) if crop else None
        self.filter = int(processor.resample)
        self.normalise = Normalise(processor)
        self.rounding = rounding

    def __call__(self, rgb: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to pixel values (B, 3, h, w).

        Raises:
            UserError: when an image is smaller than the crop.
        """
        levels = to_levels(rgb, rounding=self.rounding)
        if self.size is not None:
            size = self.resized(*levels.shape[-2:])
            levels = resize(levels, size, self.filter, rounding=self.rounding)
        if self.crop is not None:
            levels = self._cropped(levels, self.crop)
        return self.normalise(levels)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image of (height, width) is resized to before the crop."""
        given = {name: value for name, value in (self.size or {}).items() if value}
        if set(given) == {"height", "width"}:
            return given["height"], given["width"]
        if set(given) != {"shortest_edge"}:
            raise UserError(f"the processor's size {given} is neither height and width nor shortest_edge")
        edge = given["shortest_edge"]
        short, long = min(height, width), max(height, width)
        other = int(edge * long / short)
        return (edge, other) if height <= width else (other, edge)

    @staticmethod
    def _cropped(levels: Tensor, crop: tuple[int, int]) -> Tensor:
        (height, width), (H, W) = crop, levels.shape[-2:]
        if height > H or width > W:
            raise UserError(f"the processor crops {height}×{width} of an image that it resized to {H}×{W}")
        top, left = (H - height) // 2, (W - width) // 2
        return levels[..., top : top + height, left : left + width]


def check_agreement(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Any], Tensor], size: tuple[int, int]
) -> None:
    """Compare two preprocessings of one random image.

    Args:
        ours: from (1, 3, H, W) in [0, 1], rounding as Pillow does.
        theirs: from a byte array (H, W, 3).
        size: (H, W).

    Raises:
        UserError: when shapes differ, or values by more than ``TOLERANCE``.
    """
    picture = random_picture(*size)
    mine, own = ours(picture[None]), theirs(as_array(picture))
    if mine.shape != own.shape:
        apart = f"has shape {tuple(mine.shape)}, not {tuple(own.shape)}"
    elif (difference := float((mine - own).abs().max())) > TOLERANCE:
        apart = f"is off by {difference:.2g}"
    else:
        return
    raise UserError(
        f"the differentiable preprocessing {apart} against the model's own processor: "
        "this processor's settings or this version of transformers are not supported"
    )
