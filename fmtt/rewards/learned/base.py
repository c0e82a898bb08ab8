"""What learned rewards share: model values to RGB, chunks of a bounded size, and the prompt of a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards.description import Described, Description
from fmtt.rewards.learned.loading import parse_dtype
from fmtt.rewards.learned.preprocess import ResizeAndCrop, check_agreement
from fmtt.rewards.learned.prompts import Prompts, Truncation
from fmtt.rewards.picture import checked_range, to_unit
from fmtt.types import Cond


class LearnedReward(Described, ABC):
    """A reward computed by a pretrained network from images (B, 1 or 3, H, W).

    Values outside the range of displayable colours are clipped and have no gradient. Chunks bound the
    memory of a call without gradients; with gradients every chunk's graph is kept until the backward pass.

    Args:
        prompts: the prompts of samples, or None for a reward that reads none.
        value_range: the model values of black and white.
        dtype: of the network: float32, bfloat16, float16 or float64.
        device: where the network is.
        max_batch: most images of one forward pass.
        rounding: round to 8 bits as the network's own image processor does, which gives the published
            score exactly; the gradient passes straight through the rounding.

    Raises:
        UserError: when an argument is out of range.
    """

    def __init__(
        self,
        prompts: Prompts | None,
        value_range: tuple[float, float],
        dtype: str,
        device: str,
        max_batch: int,
        rounding: bool,
    ) -> None:
        if max_batch < 1:
            raise UserError(f"max_batch must be at least 1, got {max_batch}")
        self.prompts = prompts
        self.value_range = checked_range(value_range)
        self.dtype, self.device = parse_dtype(dtype), device
        self.max_batch, self.rounding = max_batch, rounding
        self.description: Description = replace(type(self).description, max_batch=max_batch)
        self.truncated: list[Truncation] = []
        self._checked: set[tuple[int, int]] = set()

    @property
    def report(self) -> dict[str, Any]:
        """What a reader of the scores must know, ready for JSON: prompts that are not read in full."""
        return {"truncated_prompts": [cut._asdict() for cut in self.truncated]}

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of images (B, 1 or 3, H, W).

        Where there are several prompts, ``cond["prompt_index"]`` (B,) says which belongs to a sample.

        Raises:
            UserError: when samples are no images, or the prompt of one is not known.
        """
        x = x1.to(torch.promote_types(x1.dtype, torch.float32))
        rgb = to_unit(x, self.value_range).clamp(0, 1)
        if rgb.shape[1] not in (1, 3):
            raise UserError(
                f"this reward scores images of 1 or 3 channels, got {rgb.shape[1]}; decode them first"
            )
        index = torch.zeros(len(x), dtype=torch.long)
        if self.prompts is not None:
            index = self.prompts.index(cond, len(x))
        rgb = rgb.expand(-1, 3, -1, -1).to(self.device)
        pairs = zip(rgb.split(self.max_batch), index.split(self.max_batch), strict=True)
        scores = [self._score(chunk, rows) for chunk, rows in pairs]
        return torch.cat(scores).to(x) if scores else x.new_zeros(0)

    def __repr__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def _score(self, rgb: Tensor, index: Tensor) -> Tensor:
        """Scores (b,) of images (b, 3, H, W) in [0, 1] with prompts at ``index`` (b,)."""

    def _checked_once(self, size: tuple[int, int], processor: Any) -> None:
        """Compare the preprocessing with the processor's own at the first image of a size."""
        if size not in self._checked:

            def theirs(image: Any) -> Tensor:
                return processor(image, return_tensors="pt")["pixel_values"]

            check_agreement(ResizeAndCrop(processor, rounding=True), theirs, size)
            self._checked.add(size)
