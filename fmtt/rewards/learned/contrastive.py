"""Similarity of an image and its prompt in CLIP's joint space: CLIP score, PickScore, HPSv2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fmtt.png import DEFAULT_RANGE
from fmtt.rewards.description import Description
from fmtt.rewards.learned import loading
from fmtt.rewards.learned.base import LearnedReward
from fmtt.rewards.learned.preprocess import ResizeAndCrop
from fmtt.rewards.learned.prompts import Prompts, encode


def pooled(output: object) -> Tensor:
    """The features (B, d) of ``get_image_features`` or ``get_text_features``, a tensor in older versions."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


class ClipScore(LearnedReward):
    """The cosine of image and prompt in CLIP's joint space, times the checkpoint's own scale (100).

    Radford et al. 2021 (arXiv:2103.00020). Prompts are read up to the text encoder's length, 77 tokens.

    Args:
        prompt: one prompt, several, or ``@FILE`` with one per line; with several, ``cond["prompt_index"]``
            says which belongs to a sample.
        model: folder or hub id of a CLIPModel in safetensors.
        processor: folder or hub id of tokenizer and image processor; the model's own if empty.
        revision: branch, tag or commit on the hub.
        value_range, dtype, device, max_batch, rounding: see :class:`LearnedReward`.

    Raises:
        UserError: when a package, file or prompt is missing.
    """

    description = Description(
        "CLIP similarity of image and prompt",
        True,
        value_range=(-100.0, 100.0),
        space="pixels",
        uses_prompt=True,
    )
    scaled = True
    """Whether the cosine is multiplied by the checkpoint's scale."""

    def __init__(
        self,
        prompt: str | Sequence[str],
        model: str = "openai/clip-vit-large-patch14",
        processor: str = "",
        revision: str = "main",
        value_range: tuple[float, float] = DEFAULT_RANGE,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 16,
        rounding: bool = False,
    ) -> None:
        prompts = Prompts(prompt)
        super().__init__(prompts, value_range, dtype, device, max_batch, rounding)
        self.model = loading.model("CLIPModel", model, revision, self.dtype, device)
        source, its_revision = (processor, "main") if processor else (model, revision)
        self.processor = loading.image_processor(source, its_revision)
        self.preprocess = ResizeAndCrop(self.processor, rounding=rounding)
        limit = self.model.config.text_config.max_position_embeddings
        tokens, self.truncated = encode(
            loading.tokenizer(source, its_revision), prompts.texts, limit, type(self).__name__
        )
        with torch.no_grad():
            features = pooled(self.model.get_text_features(**tokens.to(device)))
            self.text = normalize(features, dim=-1)  # (P, d)
            self.scale = float(self.model.logit_scale.exp()) if self.scaled else 1.0

    def _score(self, rgb: Tensor, index: Tensor) -> Tensor:
        self._checked_once((rgb.shape[-2], rgb.shape[-1]), self.processor)
        pixels = self.preprocess(rgb).to(self.dtype)
        image = normalize(pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1)
        return self.scale * (image * self.text[index.to(image.device)]).sum(-1)


class PickScore(ClipScore):
    """PickScore: CLIP-H finetuned on Pick-a-Pic's human choices, the cosine times its own scale.

    Kirstain et al. 2023 (arXiv:2305.01569). Arguments as for :class:`ClipScore`.
    """

    description = Description(
        "PickScore, human preference of Pick-a-Pic",
        True,
        value_range=(-100.0, 100.0),
        space="pixels",
        uses_prompt=True,
    )

    def __init__(
        self,
        prompt: str | Sequence[str],
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        revision: str = "main",
        value_range: tuple[float, float] = DEFAULT_RANGE,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 16,
        rounding: bool = False,
    ) -> None:
        super().__init__(prompt, model, processor, revision, value_range, dtype, device, max_batch, rounding)


class HPSv2(ClipScore):
    """Human Preference Score v2: CLIP-H finetuned on HPD v2, the plain cosine, around 0.2 to 0.3.

    Wu et al. 2023 (arXiv:2306.09341). The authors' checkpoint is in OpenCLIP's layout; the model here is
    its conversion to a transformers CLIPModel. Arguments as for :class:`ClipScore`.
    """

    description = Description(
        "HPSv2, human preference of HPD v2", True, value_range=(-1.0, 1.0), space="pixels", uses_prompt=True
    )
    scaled = False

    def __init__(
        self,
        prompt: str | Sequence[str],
        model: str = "adams-story/HPSv2-hf",
        processor: str = "",
        revision: str = "main",
        value_range: tuple[float, float] = DEFAULT_RANGE,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 16,
        rounding: bool = False,
    ) -> None:
        super().__init__(prompt, model, processor, revision, value_range, dtype, device, max_batch, rounding)
