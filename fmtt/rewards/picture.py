"""Images as rewards read them: model values in RGB units, and pictures from files.

RGB units are 0 for black and 1 for white; ``value_range`` holds the two model values that stand for them.
Nothing is clipped, so that gradients reach values outside. ``value_range=(0, 1)`` leaves values as they are.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmtt.errors import UserError
from fmtt.png import DEFAULT_RANGE as DEFAULT_RANGE

LUMA = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in a pixel's brightness (ITU-R BT.709)."""


def checked_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """``value_range`` as two finite floats.

    Raises:
        UserError: when they are not low < high.
    """
    low, high = (float(v) for v in value_range)
    if not (low < high and math.isfinite(high - low)):
        raise UserError(f"value_range must be two values low:high with low < high, got {low:g}:{high:g}")
    return low, high


def positive(name: str, value: float) -> float:
    """``value`` as a float.

    Raises:
        UserError: when it is not positive and finite.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{name} must be positive and finite, got {value}")
    return float(value)


def to_unit(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Images (B, C, H, W) in model values, in RGB units.

    Raises:
        UserError: when they are no images.
    """
    if images.ndim != 4:
        shape = " × ".join(map(str, images.shape[1:]))
        raise UserError(
            f"this reward scores images (channels × height × width), got samples of shape {shape}"
        )
    low, high = value_range
    return (images - low) / (high - low)


def luma(rgb: Tensor) -> Tensor:
    """Brightness (..., 1, H, W) of (..., C, H, W): BT.709 luma of RGB, the mean of other channels."""
    if rgb.shape[-3] != 3:
        return rgb.mean(-3, keepdim=True)
    return (rgb * rgb.new_tensor(LUMA)[:, None, None]).sum(-3, keepdim=True)


def with_channels(picture: Tensor, channels: int) -> Tensor:
    """A picture (C, H, W) for images of ``channels``: colour turns grey for one, grey repeats for more."""
    if picture.shape[0] == 1:
        return picture.expand(channels, -1, -1)
    return luma(picture) if channels == 1 and picture.shape[0] == 3 else picture


def load(path: str | Path) -> Tensor:
    """A picture (1 or 3, H, W), float32 in RGB units, from an image file.

    Args:
        path: PNG, JPEG or whatever Pillow reads, transparency composed on white; or a .safetensors file
            with one tensor, (C, H, W) or (H, W), in RGB units.

    Raises:
        UserError: when there is no such file or it holds no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no picture at {path}; give a PNG or a .safetensors file")
    return _load_tensor(path) if path.suffix == ".safetensors" else _load_image(path)


def _load_tensor(path: Path) -> Tensor:
    try:
        tensors = list(load_file(path).values())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    if len(tensors) != 1 or tensors[0].ndim not in (2, 3):
        raise UserError(f"{path} must hold one tensor, (channels, height, width) in RGB units from 0 to 1")
    return tensors[0].float().reshape(-1, *tensors[0].shape[-2:])


def _load_image(path: Path) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            f"reading {path} needs Pillow: pip install 'fmtt[evaluate]', or give a .safetensors file"
        ) from error
    try:
        with Image.open(path) as image:
            image.load()
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            grey = image.mode in ("1", "L")
            image = image.convert("L" if grey else "RGB")
            width, height = image.size
            content = bytearray(image.tobytes())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture: {error}") from error
    flat = torch.frombuffer(content, dtype=torch.uint8).float() / 255
    return flat.reshape(height, width, 1 if grey else 3).permute(2, 0, 1).contiguous()
