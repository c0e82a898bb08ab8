"""Handwritten digits of 8 x 8 pixels: scikit-learn's copy of the UCI set, 1797 images by 43 writers.

A pixel is one of 17 grey levels. A sample is an image drawn with replacement, each pixel uniform within its
level, so that the law has a density; white on black, values in VALUE_RANGE.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.counter import uniforms
from fmtt.errors import UserError

SIZE, CLASSES, LEVELS = 8, 10, 17
DATA_SHAPE = (1, SIZE, SIZE)
VALUE_RANGE = (-1.0, 1.0)
"""The values of black and white."""


class Digit(NamedTuple):
    """Latent variables (B,) int64: the number that was written, and which of the images it is."""

    label: Tensor
    image: Tensor


@lru_cache(maxsize=1)
def images() -> tuple[Tensor, Tensor]:
    """All levels (1797, 1, 8, 8), 0 to 16 as float32, and labels (1797,) int64.

    Raises:
        UserError: when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits need scikit-learn: pip install -e '.[train]'") from error
    found: Any = load_digits()
    levels = torch.from_numpy(np.asarray(found.images, dtype=np.float32))
    return levels[:, None], torch.from_numpy(np.asarray(found.target, dtype=np.int64))


def digits_batch(indices: Tensor, seed: int) -> tuple[Tensor, Digit]:
    """Digits: images (B, 1, 8, 8), and what they show."""
    levels, labels = images()
    index = indices.to(torch.int64).cpu().numpy()[:, None]
    u = torch.from_numpy(uniforms(seed, index, np.arange(1 + SIZE * SIZE)[None, :]))
    image = (u[:, 0] * len(levels)).long()
    return values(levels[image], u[:, 1:].reshape(-1, *DATA_SHAPE)), Digit(labels[image], image)


def values(levels: Tensor, within: Tensor | float = 0.5) -> Tensor:
    """Model values of grey levels (B, 1, 8, 8), at the share ``within`` of each level's width."""
    low, high = VALUE_RANGE
    return (low + (high - low) * (levels + within) / LEVELS).float()
