"""Flow maps at inference: load them, sample in a few steps, tilt by a reward, search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmtt.errors import UserError
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.steering.result import SearchResult, TiltResult
from fmtt.steering.sample import sample
from fmtt.steering.search import search
from fmtt.steering.tilt import tilt
from fmtt.types import FlowMap, Reward, VelocityField

if TYPE_CHECKING:
    from fmtt.evaluation.certify import certify
    from fmtt.models.checkpoint import load

__version__ = "0.1.0"

__all__ = [
    "FlowMap",
    "Linear",
    "Reward",
    "SearchResult",
    "TiltResult",
    "Trigonometric",
    "UserError",
    "VelocityField",
    "certify",
    "load",
    "sample",
    "search",
    "tilt",
]


def __getattr__(name: str) -> Any:
    if name == "load":  # the networks are imported only by those who load one
        from fmtt.models.checkpoint import load

        return load
    if name == "certify":
        from fmtt.evaluation.certify import certify

        return certify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
