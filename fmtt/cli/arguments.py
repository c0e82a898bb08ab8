"""Types of command-line arguments: what is no such value is refused by one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from fmtt.errors import nearest

DTYPES = ("float32", "bfloat16", "float16")


class Sum(argparse.Action):
    """An option that may be repeated: what is given is joined by plus signs."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before} + {values}" if before else values)


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """An argument type that takes one of ``names``."""

    def check(text: str) -> str:
        if text not in names:
            listed = ", ".join(names)
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {listed}{nearest(text, names)}")
        return text

    return check


LARGEST = 2**62
"""Of whole numbers: torch counts and seeds in 64 bits."""


def whole(minimum: int) -> Callable[[str], int]:
    """An argument type that takes whole numbers from ``minimum`` to LARGEST."""

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"must be at most {LARGEST}, got {value}")
        return value

    return check


def real(low: float, high: float = float("inf")) -> Callable[[str], float]:
    """An argument type that takes finite numbers from ``low`` to ``high``."""

    def check(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (low <= value <= high and abs(value) < float("inf")):
            span = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"must be {span}, got {text}")
        return value

    return check


def amounts(text: str) -> list[float]:
    """An argument type that takes positive numbers by commas, each once."""
    return list(dict.fromkeys(real(1e-9)(part.strip()) for part in text.split(",")))


def share(text: str) -> tuple[int, int]:
    """An argument type that takes one of several equal shares, written K/N with K from 0 to N - 1."""
    first, _, of = text.partition("/")
    try:
        k, n = int(first), int(of)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N") from None
    if not 0 <= k < n:
        raise argparse.ArgumentTypeError(f"K of K/N must lie between 0 and N - 1, got {text}")
    return k, n
