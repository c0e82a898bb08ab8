"""Prompts as families with one text encoder embed them: tokens, and a mask of those that are padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmtt.models.diffusers.family import NEGATIVE

TOKENS, MASK = "prompt_embeds", "prompt_attention_mask"


def encode(
    pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
) -> dict[str, Tensor]:
    """Conditions of prompts by the pipeline's text encoder, and of the ``negative`` one where given."""
    text, mask, other, other_mask = pipeline.encode_prompt(
        prompt=texts,
        negative_prompt=negative or "",
        do_classifier_free_guidance=negative is not None,
        **options,
    )
    cond = {TOKENS: text, MASK: mask}
    if negative is not None:
        cond |= {NEGATIVE + TOKENS: other, NEGATIVE + MASK: other_mask}
    return cond
