"""Rewards written as text: ``clock:time=3:47,sharpness=40 + 0.5*symmetry:axis=vertical``.

A part is ``[WEIGHT*]NAME[:key=value,...]``; parts are joined by a plus sign between spaces. A value may hold
``:`` and ``=``; one that holds a comma, or a plus sign between spaces or before a reward's name, stands in
double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fmtt.errors import UserError, nearest
from fmtt.rewards import arguments
from fmtt.rewards.composite import Composite
from fmtt.rewards.table import REWARDS
from fmtt.types import Reward

FORM = "write NAME:key=value,... + 0.5*NAME:key=value,..."
"""What a message ends with."""
_NEXT = rf"\+\s*([-+\d.eE]+\s*\*\s*)?({'|'.join(REWARDS)})\s*(:|$)|\s\+$"
"""A plus sign that lacks a space, and the reward after it."""


class Term(NamedTuple):
    """One part of a specification, checked as far as it can be without building it.

    Attributes:
        text: the part as written, without its weight.
        values: converted arguments by name.
    """

    weight: float
    text: str
    maker: Callable[..., Reward]
    values: dict[str, Any]

    def build(self, **context: Any) -> Reward:
        """The reward; ``context`` fills arguments that it has and the specification does not set."""
        known = arguments.of(self.maker)
        offered = {key: value for key, value in context.items() if key in known}
        values = {**offered, **self.values}
        missing = [
            name for name, a in known.items() if a.default is arguments.REQUIRED and name not in values
        ]
        if missing:
            needed = " and ".join(f"{name}=..." for name in missing)
            raise UserError(f"reward {self.text!r} needs {needed}; keys: {', '.join(known)}")
        try:
            return self.maker(**values)
        except (TypeError, ValueError) as error:
            raise UserError(f"reward {self.text!r}: {error}") from error

    def same_reward(self, other: Term) -> bool:
        """Whether both describe one reward, whatever their weights and however they are written."""
        return self.maker is other.maker and self._all_values() == other._all_values()

    def _all_values(self) -> dict[str, Any]:
        defaults = {name: a.default for name, a in arguments.of(self.maker).items()}
        return {**defaults, **self.values}


def parse(spec: str) -> list[Term]:
    """The parts of a specification, before anything is built.

    Raises:
        UserError: when a name or key is unknown, a value does not fit its argument, or a part is repeated.
    """
    terms = [_term(part.strip()) for part in _split(spec, r"\s\+\s")]
    texts = [term.text for term in terms]
    for text in texts:
        if texts.count(text) > 1:
            raise UserError(f"reward {text!r} is given twice; add the weights")
    return terms


def build(spec: str, **context: Any) -> Reward:
    """The reward that a specification describes; a :class:`Composite` if it has a weight or several parts.

    Args:
        context: values for arguments that a reward has and the specification does not set, such as the
            model's ``value_range``. A reward without such an argument does not see it.

    Raises:
        UserError: one line that names the part, the key and the remedy.
    """
    terms = parse(spec)
    if len(terms) == 1 and terms[0].weight == 1:
        return terms[0].build(**context)
    return Composite(
        {term.text: term.build(**context) for term in terms}, {term.text: term.weight for term in terms}
    )


def _term(part: str) -> Term:
    weight, text = _weight(part)
    name, _, rest = text.partition(":")
    name = name.strip()
    if "+" in name:
        raise _unspaced(part)
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"reward {part!r} does not begin with a name; {FORM}; rewards: {', '.join(REWARDS)}")
    if name not in REWARDS:
        raise UserError(f"reward {name!r} is unknown; rewards: {', '.join(REWARDS)}{nearest(name, REWARDS)}")
    known = arguments.of(REWARDS[name])
    values: dict[str, Any] = {}
    for item in _split(rest, ",") if rest else []:
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if re.search(_NEXT, re.sub('"[^"]*"', "", item)):
            raise _unspaced(part, "; a value that holds such a sign stands in double quotes")
        if not equals:
            raise UserError(
                f"reward {text!r}: {item!r} is not key=value; write {name}:key=value,... and put a value "
                "that holds a comma in double quotes"
            )
        if key not in known:
            keys = ", ".join(known)
            raise UserError(f"reward {name!r} has no key {key!r}; keys: {keys}{nearest(key, known)}")
        if key in values:
            raise UserError(f"reward {text!r}: key {key!r} is given twice; keep one")
        values[key] = arguments.convert(f"reward {text!r}: {key}", _unquoted(value), known[key].kind)
    return Term(weight, text, REWARDS[name], values)


def _weight(part: str) -> tuple[float, str]:
    """(weight, the rest) of ``[WEIGHT*]NAME...``; a star after the first colon belongs to a value."""
    head, star, rest = part.partition("*")
    if not star or ":" in head:
        return 1.0, part
    try:
        return float(head), rest.strip()
    except ValueError:
        if "+" in head:
            raise _unspaced(part) from None
        raise UserError(
            f"the weight of a reward must be a number, got {head!r} in {part!r}; {FORM}"
        ) from None


def _unspaced(part: str, besides: str = "") -> UserError:
    return UserError(
        f"reward {part!r}: a plus sign needs a space, and a reward, on both of its sides; {FORM}{besides}"
    )


def _split(text: str, separator: str) -> list[str]:
    return list(_pieces(text, separator))


def _pieces(text: str, separator: str) -> Iterator[str]:
    """What stands between matches of a regular expression outside double quotes."""
    masked = re.sub('"[^"]*"', lambda quoted: "\0" * len(quoted[0]), text)
    if '"' in masked:
        raise UserError(f"reward {text!r}: a double quote is not closed")
    start = 0
    for match in re.finditer(separator, masked):
        yield text[start : match.start()]
        start = match.end()
    yield text[start:]


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
