"""A weighted sum of rewards, every part of which can be reported."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards.description import Described, Description, Space, describe, score
from fmtt.types import Cond, Reward


class Composite(Described):
    """r(x) = sum of weight times part over named parts.

    Args:
        rewards: the parts by name.
        weights: by the same names; 1 where omitted.

    Raises:
        UserError: when there is no part, a weight is 0 or not finite or names no part, or parts cannot
            score the same samples.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float] | None = None) -> None:
        weights = weights or {}
        if not rewards:
            raise UserError("a composite reward needs at least one part")
        for name, weight in weights.items():
            if name not in rewards:
                raise UserError(f"weight {name!r} names no part; parts: {', '.join(rewards)}")
            if weight == 0 or not math.isfinite(weight):
                raise UserError(
                    f"the weight of {name!r} must be finite and not 0, got {weight:g}; "
                    "a reward that is only reported is a judge"
                )
        self.rewards = dict(rewards)
        self.weights = {name: float(weights.get(name, 1.0)) for name in rewards}
        self.description = _described(self.rewards, self.weights)

    def parts(self, x1: Tensor, cond: Cond | None = None) -> dict[str, Tensor]:
        """Unweighted scores (B,) of every part, by name."""
        return {name: score(reward, x1, cond) for name, reward in self.rewards.items()}

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,)."""
        total: Tensor | None = None
        for name, value in self.parts(x1, cond).items():
            weighted = self.weights[name] * value
            total = weighted if total is None else total + weighted
        assert total is not None
        return total

    def __repr__(self) -> str:
        return " + ".join(
            name if weight == 1 else f"{weight:g}*{name}" for name, weight in self.weights.items()
        )


def parts_of(reward: Reward, name: str) -> dict[str, Reward]:
    """The parts of a composite by their names; any other reward is its own only part, called ``name``."""
    return dict(reward.rewards) if isinstance(reward, Composite) else {name: reward}


def _described(rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> Description:
    parts = {name: describe(reward) for name, reward in rewards.items()}
    known = [part.differentiable for part in parts.values()]
    low = high = 0.0
    for name, part in parts.items():
        ends = sorted(weights[name] * end for end in part.value_range)
        low, high = low + ends[0], high + ends[1]
    limits = [part.max_batch for part in parts.values() if part.max_batch is not None]
    return Description(
        f"weighted sum of {len(parts)} rewards",
        differentiable=False if False in known else None if None in known else True,
        value_range=(low, high),
        space=_common_space(parts),
        uses_prompt=any(part.uses_prompt for part in parts.values()),
        max_batch=min(limits, default=None),
        remote=any(part.remote for part in parts.values()),
    )


def _common_space(parts: Mapping[str, Description]) -> Space:
    """What all parts can score: "data" gives way to pixels or latents, which exclude each other."""
    first: dict[str, str] = {}
    for name, part in parts.items():
        first.setdefault(part.space, name)
    if "pixels" in first and "latents" in first:
        raise UserError(
            f"{first['pixels']!r} scores pixels and {first['latents']!r} latents: use one kind of reward"
        )
    return "pixels" if "pixels" in first else "latents" if "latents" in first else "data"
