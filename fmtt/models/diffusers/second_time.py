"""How a transformer that knows one time learns of a second: where the map goes, beside where it is.

Both forms act on the vector (B, dim) that the transformer's own embedding makes of its time (and, in some
families, of the pooled prompt and a guidance scale) and that modulates every block.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from fmtt.errors import UserError, nearest
from fmtt.models.embeddings import TimeEmbedding

MAX_FREQUENCY = 4.0
"""Of the added embedding, in units of pi: a frequency w makes the map's derivative in t grow by w."""


class SecondTime(Protocol):
    """What becomes of the vector of the first time."""

    def __call__(
        self, first: Tensor, t: Tensor, timestep: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The vector of both times, (B, dim).

        Args:
            first: what the transformer's embedding gave, (B, dim).
            t: the second time (B,), and ``timestep``, the same in the embedding's own unit.
            rest, kwargs: what that embedding was called with besides its timestep.
        """
        ...


class ZeroInit(nn.Module):
    """Adds a smooth embedding of t that is zero until it is trained: the untrained student is its teacher."""

    def __init__(self, embedding: nn.Module, dim: int) -> None:
        super().__init__()
        self.embed = TimeEmbedding(dim, max_frequency=MAX_FREQUENCY, zero_init=True)

    def forward(
        self, first: Tensor, t: Tensor, timestep: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        return first + self.embed(t).to(first.dtype)


class Averaged(nn.Module):
    """Averages the embedding of the first time with that of the second by a copy of the whole embedding.

    The layout of public two-time adapters. An untrained student equals its teacher at s = t only, and the
    high frequencies of a timestep embedding make derivatives in t large.
    """

    def __init__(self, embedding: nn.Module, dim: int) -> None:
        super().__init__()
        self.embed = copy.deepcopy(embedding).requires_grad_(True)

    def forward(
        self, first: Tensor, t: Tensor, timestep: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        return (first + self.embed(timestep, *rest, **kwargs)) / 2


SECOND_TIMES: dict[str, type[ZeroInit] | type[Averaged]] = {"zero_init": ZeroInit, "averaged": Averaged}
NONE = "none"
"""A map without a second time: u_{s,t} = b_s, one Euler step."""


def build(name: str, embedding: nn.Module, dim: int) -> ZeroInit | Averaged | None:
    """The form called ``name``, beside the transformer's own ``embedding`` of width ``dim``.

    Raises:
        UserError: for an unknown name.
    """
    if name == NONE:
        return None
    if name not in SECOND_TIMES:
        known = [NONE, *SECOND_TIMES]
        raise UserError(f"second_time must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return SECOND_TIMES[name](embedding, dim)
