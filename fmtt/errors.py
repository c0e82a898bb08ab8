"""The one error that means: what the user gave is wrong, and this line says how to put it right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong argument, key or file. Command lines print it as one line and exit with status 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """How a message ends: ``; did you mean 'X'?``, X the entry of ``known`` nearest to ``word``; or ""."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
