"""Questions put to a vision-language model, and files of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fmtt.errors import UserError, nearest
from fmtt.rewards.learned.prompts import read_text
from fmtt.rewards.picture import load, with_channels

PROMPT = "{prompt}"
"""Stands in a question for the prompt that the sample was made for."""


class Question(NamedTuple):
    """A question about a sample, and the answer that is rewarded.

    Attributes:
        text: the question; ``{prompt}`` in it is replaced by the sample's prompt.
        answer: the rewarded answer.
        against: the answer it is set against in log-odds.
        weight: factor of this question in the sum.
        references: further images, shown after the sample in this order: (3, H, W) in [0, 1], or files.
    """

    text: str
    answer: str = "Yes"
    against: str = "No"
    weight: float = 1.0
    references: tuple[Tensor | str, ...] = ()


def questions(given: str | Sequence[str | Question], default: Question) -> list[Question]:
    """Questions as a constructor takes them.

    Args:
        given: a question; several; or ``@FILE``, JSON lines of objects with the attributes of
            :class:`Question`, references as file names.
        default: what a question given as text takes its other attributes from.

    Raises:
        UserError: when there is none, a key is unknown, or a value makes no sense.
    """
    if isinstance(given, str) and given.startswith("@"):
        lines = read_text(given[1:], "question").splitlines()
        asked = [
            _parse(line, f"{given[1:]}, line {n}", default) for n, line in enumerate(lines, 1) if line.strip()
        ]
    else:
        many = [given] if isinstance(given, str) else list(given)
        asked = [default._replace(text=q) if isinstance(q, str) else q for q in many]
    if not asked:
        raise UserError("question is empty; give question=TEXT, or question=@FILE of JSON lines")
    return [_checked(question) for question in asked]


def pictures(question: Question) -> tuple[Tensor, ...]:
    """The references of a question, each (3, H, W) in [0, 1].

    Raises:
        UserError: when a file cannot be read.
    """
    images = [load(r) if isinstance(r, str) else r for r in question.references]
    return tuple(with_channels(image.float().clamp(0, 1), 3) for image in images)


def _parse(line: str, where: str, default: Question) -> Question:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict) or "text" not in entry:
        raise UserError(
            f"{where}: a question is an object with a text, and maybe answer, against, weight, references"
        )
    for key in entry:
        if key not in Question._fields:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, Question._fields)}")
    if "references" in entry:
        many = entry["references"]
        entry["references"] = (many,) if isinstance(many, str) else tuple(many)
    return default._replace(**entry)


def _checked(question: Question) -> Question:
    texts = (question.text, question.answer, question.against)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"a question, its answer and what that is set against are texts, got {texts}")
    weight = question.weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise UserError(f"the weight of {question.text!r} must be a finite number, got {weight!r}")
    for image in question.references:
        if isinstance(image, Tensor) and (image.ndim != 3 or image.shape[0] not in (1, 3)):
            raise UserError(f"a reference is an image (3, H, W) in [0, 1], got shape {tuple(image.shape)}")
    return question
