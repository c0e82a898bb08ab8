"""What travels with a reward: how it may be used, what it needs, and which values it takes.

A reward is any callable ``(x1, cond) -> (B,)``; a description is an attribute ``description`` on it, on the
class for what holds for every instance, on the instance for what its arguments decide.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.tensor import take_cond
from fmtt.types import Cond, Reward

Space = Literal["data", "pixels", "latents"]
"""What a reward scores: samples as the model makes them, decoded pixels, or latents."""


@dataclass(frozen=True)
class Description:
    """How a reward may be used.

    Attributes:
        summary: one line for a reader.
        differentiable: whether gradients reach the samples; None where only a trial can tell.
        value_range: the smallest and the largest value it can take, infinite where there is no bound.
        space: "data" (samples in the model's own values), "pixels" or "latents".
        uses_prompt: whether it needs the prompt that a sample was made for.
        max_batch: most samples of one call, None for no limit.
        remote: whether a call leaves this machine.

    Raises:
        UserError: when the range is empty, the space is unknown, or a batch holds no sample.
    """

    summary: str
    differentiable: bool | None = None
    value_range: tuple[float, float] = (-math.inf, math.inf)
    space: Space = "data"
    uses_prompt: bool = False
    max_batch: int | None = None
    remote: bool = False

    def __post_init__(self) -> None:
        low, high = self.value_range
        if not low <= high:
            raise UserError(f"a description's value_range must be (low, high), got ({low}, {high})")
        if self.space not in get_args(Space):
            raise UserError(
                f"a description's space is one of {', '.join(get_args(Space))}, got {self.space!r}"
            )
        if self.max_batch is not None and self.max_batch < 1:
            raise UserError(f"a description's max_batch must be at least 1, got {self.max_batch}")


class Described:
    """A reward that states its description, from which ``differentiable`` follows.

    Not required of a reward: a mixin that keeps the attribute that steering reads in step with it.
    """

    description: Description

    @property
    def differentiable(self) -> bool | None:
        return self.description.differentiable


def describe(reward: Any) -> Description:
    """The description of a reward, or of a class of rewards; without one, what its attributes tell."""
    given = getattr(reward, "description", None)
    if isinstance(given, Description):
        return given
    declared = getattr(reward, "differentiable", None)
    return Description(_first_line(reward), bool(declared) if isinstance(declared, (bool, int)) else None)


def score(reward: Reward, x1: Tensor, cond: Cond | None = None) -> Tensor:
    """The scores (B,) of samples (B, *D), in calls of at most the reward's ``max_batch``."""
    size, B = describe(reward).max_batch, x1.shape[0]
    if size is None or size >= B:
        return reward(x1, cond)
    rows = [slice(i, i + size) for i in range(0, B, size)]
    return torch.cat([reward(x1[r], take_cond(cond, r)) for r in rows])


def _first_line(reward: Any) -> str:
    own = inspect.isroutine(reward) or inspect.isclass(reward)
    named = reward if own else type(reward)
    text = inspect.getdoc(named) or ""
    return text.split("\n", 1)[0] or getattr(named, "__name__", "a callable")
