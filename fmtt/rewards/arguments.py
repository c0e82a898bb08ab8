"""The arguments of a reward's constructor: what a specification may set, and text to values."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from fmtt.errors import UserError, nearest

REQUIRED = inspect.Parameter.empty
"""The default of an argument that has none."""
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Argument(NamedTuple):
    """One argument: its name, its annotation, and its default or REQUIRED."""

    name: str
    kind: Any
    default: Any

    @property
    def type_name(self) -> str:
        """What a specification may give, in words."""
        return _in_words(self.kind)

    @property
    def default_text(self) -> str:
        """The default as a specification writes it; "required" without one."""
        return "required" if self.default is REQUIRED else _written(self.default)


def of(maker: Callable[..., Any]) -> dict[str, Argument]:
    """The annotated arguments of a class or function, by name."""
    hints = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    parameters = inspect.signature(maker).parameters.values()
    single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: Argument(p.name, hints[p.name], p.default) for p in parameters
            if p.name in hints and p.kind in single}  # fmt: skip


def convert(what: str, text: str, kind: Any) -> Any:
    """``text`` as its annotation asks: a scalar, a Literal, a tuple written a:b:c, or one of a union.

    Raises:
        UserError: naming ``what`` when it does not fit.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(what, text, inner)
    if origin is Literal:
        if text not in map(str, inner):
            known = [str(choice) for choice in inner]
            raise UserError(f"{what} must be one of {', '.join(known)}, got {text!r}{nearest(text, known)}")
        return next(choice for choice in inner if str(choice) == text)
    if origin is tuple:
        return _convert_tuple(what, text, inner)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{what} must be true or false, got {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise UserError(f"{what} must be {SCALARS[kind]}, got {text!r}") from None
    return text


def _convert_union(what: str, text: str, kinds: tuple[Any, ...]) -> Any:
    if type(None) in kinds and text.lower() == "none":
        return None
    written = [kind for kind in kinds if _writable(kind)]
    for kind in sorted(written, key=lambda kind: kind is str):  # text fits anything, so it comes last
        try:
            return convert(what, text, kind)
        except UserError:
            if len(written) == 1:
                raise
    raise UserError(f"{what} must be {' or '.join(map(_in_words, written))}, got {text!r}")


def _convert_tuple(what: str, text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(_separator(kinds))]
    each = [kinds[0]] * len(parts) if kinds[-1] is Ellipsis else kinds
    if len(parts) != len(each):
        raise UserError(f"{what} must be {_in_words(tuple[kinds])}, got {text!r}")
    try:
        return tuple(convert(what, part, kind) for part, kind in zip(parts, each, strict=True))
    except UserError:
        raise UserError(f"{what} must be {_in_words(tuple[kinds])}, got {text!r}") from None


def _separator(kinds: tuple[Any, ...]) -> str:
    """Numbers are separated by a colon; texts, which may hold one, by a bar."""
    return "|" if kinds[0] is str else ":"


def _writable(kind: Any) -> bool:
    return kind in SCALARS or get_origin(kind) in (Literal, tuple)


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(k) for k in inner if _writable(k)) or "text"
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        noun = "texts" if inner[0] is str else "numbers"  # a:b:c, as convert reads them
        if inner[-1] is Ellipsis:
            return f"{noun} separated by {_separator(inner)}"
        return f"{len(inner)} {noun} separated by {_separator(inner)}"
    return SCALARS.get(kind, "text")


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ("|" if value and isinstance(value[0], str) else ":").join(map(_written, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
