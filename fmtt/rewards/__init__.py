"""Rewards by name: ``build("clock:time=3:47,sharpness=40")``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from fmtt.errors import UserError, nearest
from fmtt.rewards.clock_reward import ClockReward
from fmtt.types import Reward

REWARDS: dict[str, Callable[..., Reward]] = {"clock": ClockReward}
"""Every reward a specification can name; its keys are the constructor's arguments."""


def build(spec: str) -> Reward:
    """The reward that ``NAME[:key=value,...]`` names; a value may hold ``:`` but no comma.

    Raises:
        UserError: when the name or a key is unknown, or a value does not fit its argument.
    """
    name, _, rest = spec.partition(":")
    if name not in REWARDS:
        raise UserError(f"reward {name!r} is unknown; rewards: {', '.join(REWARDS)}{nearest(name, REWARDS)}")
    maker = REWARDS[name]
    types = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    keys = [key for key in inspect.signature(maker).parameters if key in types]
    values: dict[str, Any] = {}
    for item in rest.split(",") if rest else []:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise UserError(f"reward {spec!r}: {item!r} is not key=value; write {name}:key=value,...")
        if key not in keys:
            raise UserError(
                f"reward {name!r} has no key {key!r}; keys: {', '.join(keys)}{nearest(key, keys)}"
            )
        if key in values:
            raise UserError(f"reward {spec!r}: key {key!r} is given twice; keep one")
        values[key] = _convert(f"reward {spec!r}: {key}", text, types[key])
    try:
        return maker(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {spec!r}: {error}") from error


def _convert(what: str, text: str, kind: Any) -> Any:
    """``text`` as a bool, int, float or str, whichever the argument's annotation asks for."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{what} must be true or false, got {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise UserError(f"{what} must be {noun}, got {text!r}") from None
    return text
