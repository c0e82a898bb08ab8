"""Which prompt a sample was made for.

Conditions are tensors, so prompts travel beside them: a reward holds the list of prompts, and
``cond["prompt_index"]`` (B,) says which of them each sample belongs to. One prompt needs no index.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.types import Cond

INDEX = "prompt_index"
"""The condition that holds each sample's place in the list of prompts."""


class Prompts:
    """The prompts that samples were made for.

    Args:
        prompt: one prompt for all samples; several; or ``@FILE``, a text file with a prompt per line.

    Raises:
        UserError: when there is no prompt, one is empty, or the file cannot be read.
    """

    def __init__(self, prompt: str | Sequence[str]) -> None:
        if isinstance(prompt, str) and prompt.startswith("@"):
            prompt = [line for line in read_text(prompt[1:], "prompt").splitlines() if line.strip()]
        self.texts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        if not self.texts or not all(text.strip() for text in self.texts):
            raise UserError("prompt is empty; give prompt=TEXT, or prompt=@FILE with a prompt per line")

    def index(self, cond: Cond | None, batch: int) -> Tensor:
        """The place (B,), int64 on the CPU, of each sample's prompt.

        Raises:
            UserError: when there are several prompts and no index, or an index is out of range.
        """
        if len(self.texts) == 1:
            return torch.zeros(batch, dtype=torch.long)
        if cond is None or INDEX not in cond:
            raise UserError(
                f"the reward has {len(self.texts)} prompts: pass cond[{INDEX!r}] (B,), "
                "the number of each sample's prompt"
            )
        index = cond[INDEX].detach().cpu().long().reshape(-1)
        if len(index) != batch or not bool(((index >= 0) & (index < len(self.texts))).all()):
            raise UserError(f"cond[{INDEX!r}] must hold {batch} numbers from 0 to {len(self.texts) - 1}")
        return index


class Truncation(NamedTuple):
    """A prompt that a text encoder does not see in full."""

    prompt: str
    tokens: int
    limit: int


def read_text(path: str, key: str) -> str:
    """The text of a file that the argument ``key`` names.

    Raises:
        UserError: when it cannot be read as UTF-8.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}=@{path}: cannot read the file: {reason}") from error


def encode(tokenizer: Any, texts: Sequence[str], limit: int, reward: str) -> tuple[Any, list[Truncation]]:
    """Token ids of ``texts``, padded to ``limit`` tokens, and what had to be cut.

    A prompt longer than the limit is cut as the reward's own code cuts it; one warning names all of them.

    Returns:
        the tokenizer's batch (``input_ids`` and ``attention_mask``, (len(texts), limit)), and the cuts.
    """
    lengths = [len(ids) for ids in tokenizer(list(texts)).input_ids]
    cuts = [Truncation(text, n, limit) for text, n in zip(texts, lengths, strict=True) if n > limit]
    if cuts:
        warnings.warn(
            f"{reward} reads {limit} tokens of a prompt: {len(cuts)} of {len(texts)} prompts are cut, "
            f"the longest of {max(cut.tokens for cut in cuts)} tokens; shorten them, or judge what is cut "
            "by another reward",
            stacklevel=3,
        )
    batch = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
    )
    return batch, cuts
