"""How much of a caption the text encoders of a pipeline read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from fmtt.errors import UserError

LONGEST = 512
"""The most tokens that diffusers' pipelines let their text encoders read."""
PARTS = ("_3", "_2", "")
"""What a pipeline's names of text encoders and tokenizers end in; the one that reads the most comes first."""


class PromptLength:
    """How long prompts may be for a pipeline, and how many were longer.

    Where CLIP stands beside T5 it is T5 that counts: CLIP never reads more than its 77 tokens.

    Args:
        pipeline: of diffusers.
        asked: the number of tokens that is asked for; the pipeline's own if omitted.

    Attributes:
        limit: tokens that are read, special ones included. most: how many can be asked for.
        cut: how many captions of those counted have more than ``limit``.

    Raises:
        UserError: when the text encoder cannot read so many, or there is none.
    """

    def __init__(self, pipeline: Any, asked: int | None) -> None:
        pairs = [(getattr(pipeline, f"text_encoder{n}", None), f"tokenizer{n}") for n in PARTS]
        encoder, tokenizer = next((pair for pair in pairs if pair[0] is not None), (None, ""))
        if encoder is None:
            raise UserError("--model is a pipeline without a text encoder: give a whole one")
        self.pipeline, self.tokenizer = pipeline, getattr(pipeline, tokenizer)
        positions = getattr(encoder.config, "max_position_embeddings", None) or LONGEST
        self.most = min(LONGEST, self.tokenizer.model_max_length, positions)
        if asked is not None and not 1 <= asked <= self.most:
            raise UserError(f"--max-sequence-length must lie in 1 to {self.most} for this model, got {asked}")
        default = inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default
        self.limit = min(self.most, default if asked is None else asked)
        if hasattr(pipeline, "text_encoder_3") and pipeline.text_encoder_3 is None:
            self.limit = self.most  # SD3's CLIP reads all that it can, whatever is asked of a T5
        self.cut = 0

    def count(self, captions: Sequence[str]) -> None:
        """Count the captions of a batch that are cut."""
        texts = list(captions)
        if hasattr(self.pipeline, "_text_preprocessing"):  # SANA's writes all in small letters
            texts = self.pipeline._text_preprocessing(texts, clean_caption=False)
        if hasattr(self.pipeline, "system_prompt"):  # Lumina 2's comes first, and counts
            texts = [f"{self.pipeline.system_prompt} <Prompt Start> {text}" for text in texts]
        self.cut += sum(len(ids) > self.limit for ids in self.tokenizer(texts).input_ids)
