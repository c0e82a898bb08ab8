"""Pixel values as the processors of vision-language models make them, differentiably.

Each family turns one image into features whose second axis counts crops or patches; the images of a
question are joined along it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards.learned.preprocess import Normalise, ResizeAndCrop, to_levels
from fmtt.rewards.learned.resample import resize


class Pixels(ABC):
    """Images of a question to the ``pixel_values`` of a model.

    Args:
        processor: the model's image processor (its Pillow variant).
        rounding: round to 8 bits wherever the processor does.
    """

    def __init__(self, processor: Any, *, rounding: bool = False) -> None:
        self.processor = processor
        self.rounding = rounding

    @abstractmethod
    def one(self, rgb: Tensor) -> Tensor:
        """Images (b, 3, H, W) in [0, 1] to features (b, n, ...)."""

    @abstractmethod
    def join(self, features: Tensor) -> Tensor:
        """Features of all images of a question (b, n, ...) to ``pixel_values``."""

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """``pixel_values`` of questions about several images each.

        Args:
            images: per place in the question, (b, 3, H, W) or, the same for all, (1, 3, H, W), in [0, 1].
        """
        batch = max(len(image) for image in images)
        features = [self.one(image) for image in images]
        return self.join(torch.cat([f.expand(batch, *f.shape[1:]) for f in features], dim=1))


class FixedSize(Pixels):
    """PaliGemma: every image at one size, one after the other."""

    def __init__(self, processor: Any, *, rounding: bool = False) -> None:
        super().__init__(processor, rounding=rounding)
        self.preprocess = ResizeAndCrop(processor, rounding=rounding)

    def one(self, rgb: Tensor) -> Tensor:
        return self.preprocess(rgb)[:, None]

    def join(self, features: Tensor) -> Tensor:
        return features.flatten(0, 1)  # (b · images, 3, h, w)


class Patches(Pixels):
    """Qwen-VL: the image at about its own size, cut into patches in the order in which 2×2 of them merge."""

    def one(self, rgb: Tensor) -> Tensor:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        own = self.processor
        patch, merge, frames = own.patch_size, own.merge_size, own.temporal_patch_size
        levels = to_levels(rgb, rounding=self.rounding)
        if own.do_resize:
            least, most = own.size["shortest_edge"], own.size["longest_edge"]
            size = smart_resize(rgb.shape[-2], rgb.shape[-1], patch * merge, least, most)
            levels = resize(levels, size, int(own.resample), rounding=self.rounding)
        values = Normalise(own)(levels)
        b, c, H, W = values.shape
        h, w = H // (patch * merge), W // (patch * merge)
        values = values.reshape(b, c, h, merge, patch, w, merge, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
        values = values[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
        return values.reshape(b, h * w * merge * merge, c * frames * patch * patch)

    def join(self, features: Tensor) -> Tensor:
        return features.flatten(0, 1)  # (b · patches, values of a patch)


class Tiles(Pixels):
    """Idefics3 and SmolVLM: square tiles of the enlarged image, and the whole image at the size of a tile."""

    def one(self, rgb: Tensor) -> Tensor:
        own = self.processor
        filter, tile = int(own.resample), own.max_image_size["longest_edge"]
        levels = to_levels(rgb, rounding=self.rounding)

        def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
            return resize(images, size, filter, rounding=self.rounding)

        if own.do_resize:
            levels = resized(levels, _longest_edge(*levels.shape[-2:], own.size["longest_edge"]))
        if not own.do_image_splitting:
            return Normalise(own)(resized(levels, (tile, tile)))[:, None]
        levels = resized(levels, _whole_tiles(*levels.shape[-2:], tile))
        tiles = [crop for row in levels.split(tile, -2) for crop in row.split(tile, -1)]
        if len(tiles) > 1:
            tiles.append(resized(levels, (tile, tile)))
        return Normalise(own)(torch.stack(tiles, dim=1))

    def join(self, features: Tensor) -> Tensor:
        return features  # (b, tiles, 3, tile, tile)


def _longest_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """The size that Idefics3 resizes to: the longest edge as given, the other even, neither above 4096."""
    if width >= height:
        height, width = (even := int(edge / (width / height))) + even % 2, edge
    else:
        height, width = edge, (even := int(edge * (width / height))) + even % 2
    limit, height, width = 4096, max(height, 1), max(width, 1)
    if width >= height and width > limit:
        height, width = int(limit / (width / height)), limit
    elif height > width and height > limit:
        height, width = limit, int(limit * (width / height))
    return max(height, 1), max(width, 1)


def _whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """The size, a multiple of ``tile`` both ways, that Idefics3 cuts into tiles."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / aspect) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * aspect) / tile) * tile
    return height, width


FAMILIES: dict[str, type[Pixels]] = {
    "paligemma": FixedSize,
    "qwen2_vl": Patches,
    "qwen2_5_vl": Patches,
    "qwen3_vl": Patches,
    "idefics3": Tiles,
    "smolvlm": Tiles,
}
"""By the model_type of a model's config.json."""


def family(model_type: str, where: str) -> type[Pixels]:
    """The family of a model.

    Raises:
        UserError: when there is none.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"{where} is of type {model_type!r}; vision-language rewards read {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
