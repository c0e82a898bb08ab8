"""Values in a configuration: a name and what it may be, an argument and its type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fmtt.errors import UserError, nearest


def choose(key: str, name: str, options: Iterable[str]) -> str:
    """``name`` if it is among ``options``.

    Raises:
        UserError: naming the key, the options and the nearest one.
    """
    options = list(options)
    if name in options:
        return name
    raise UserError(f"{key}: {name!r} is not one of {', '.join(options)}{nearest(name, options)}")


_TYPES: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def check_type(key: str, value: Any, default: Any) -> None:
    """Refuse a value that is not of the type of a number, truth value or text ``default``.

    Raises:
        UserError: naming the key and the type.
    """
    wanted = type(default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if wanted in _TYPES and not (type(value) is wanted or (wanted is float and whole)):
        raise UserError(f"{key} must be {_TYPES[wanted]}, got {value!r}")
