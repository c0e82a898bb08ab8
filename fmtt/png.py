"""Pictures with torch and zlib alone: tensors to RGB, grids, and a minimal PNG encoder."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.files import atomic_write

DEFAULT_RANGE = (-1.0, 1.0)


def is_image(data_shape: Sequence[int]) -> bool:
    """Whether samples of this shape can be shown: (1, H, W) grey or (3, H, W) RGB."""
    return len(data_shape) == 3 and data_shape[0] in (1, 3)


def value_range(config: Mapping[str, Any]) -> tuple[float, float]:
    """The values that stand for black and white: ``trained.value_range`` of an export's config, else [-1, 1].

    Raises:
        UserError: when the entry is not [low, high].
    """
    given = config["trained"].get("value_range", DEFAULT_RANGE)
    try:
        low, high = (float(v) for v in given)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise UserError(f"config.json: trained.value_range must be [low, high], two numbers, got {given!r}")
    return low, high


def to_rgb(images: Tensor, values: tuple[float, float] = DEFAULT_RANGE) -> Tensor:
    """Map images (B, 1 or 3, H, W) linearly from ``values`` to (B, 3, H, W) in [0, 1], clipped."""
    low, high = values
    scaled = ((images.detach().float().cpu() - low) / (high - low)).nan_to_num(0.5).clamp(0, 1)
    return scaled.expand(-1, 3, -1, -1)


def grid(rgb: Tensor, *, columns: int | None = None, gap: int = 2, scale: int | None = None) -> Tensor:
    """Tile images (B, 3, H, W) in [0, 1] on white, row by row: (3, H', W').

    Args:
        columns: images per row; about the square root of B if omitted.
        gap: white pixels around every image, before scaling.
        scale: integer magnification; small images are enlarged to about 96 pixels if omitted.
    """
    B, _, H, W = rgb.shape
    columns = columns or max(1, round(B**0.5))
    scale = scale or max(1, 96 // max(H, W))
    rows = -(-B // columns)
    canvas = torch.ones(3, rows * (H + gap) + gap, columns * (W + gap) + gap)
    for k in range(B):
        top, left = gap + (k // columns) * (H + gap), gap + (k % columns) * (W + gap)
        canvas[:, top : top + H, left : left + W] = rgb[k]
    return canvas.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def encode(rgb: Tensor) -> bytes:
    """Encode one image (3, H, W) in [0, 1] as an 8-bit RGB PNG (ISO/IEC 15948)."""
    _, H, W = rgb.shape
    pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).reshape(H, 3 * W)
    # Every scan line starts with its filter type, 0 for none.
    lines = torch.cat([torch.zeros(H, 1, dtype=torch.uint8), pixels], dim=1).numpy().tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 0)  # 8 bits per channel, colour type 2 (RGB)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")


def write(path: str | Path, rgb: Tensor) -> None:
    """Write one image (3, H, W) in [0, 1], atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(rgb))
