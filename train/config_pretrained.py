"""The part of the configuration that says which text-to-image model is distilled, and into what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from fmtt.errors import UserError, nearest

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class LoraConfig:
    """Adapters on the teacher's own weights, which the student shares and which stay frozen."""

    rank: int = 16
    alpha: float = 0.0
    """The adapters' output is multiplied by alpha / rank; 0 for alpha = rank."""
    targets: list[str] = field(default_factory=list)
    """Suffixes of the linear layers that get one; the family's usual ones if empty."""


@dataclass
class PretrainedConfig:
    """A diffusers pipeline whose transformer is the teacher."""

    pretrained: str
    """A folder written by a pipeline's save_pretrained, or a hub id."""
    family: str = ""
    """flux | sd3 | sana | lumina2: refused if the pipeline is of another, or knows jumps to clean data only;
    found out if empty."""
    guidance: list[float] = field(default_factory=list)
    """The guidance scale of the velocity that is learned: w, or [low, high], between which each sample's w is
    drawn. Empty for none, where the model can do without."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16: of the transformer. Adapters and the second time stay float32."""


def read_teacher(given: Any) -> str | PretrainedConfig:
    """``teacher`` of a configuration: a name, or a mapping that describes a pipeline.

    Raises:
        UserError: naming the key.
    """
    if isinstance(given, PretrainedConfig):
        return given
    if not isinstance(given, dict):
        return "" if given is None else str(given)
    known = [f.name for f in fields(PretrainedConfig)]
    for key in given:
        if key not in known:
            raise UserError(
                f"teacher: unknown key {str(key)!r}, keys: {', '.join(known)}{nearest(str(key), known)}"
            )
    if not given.get("pretrained"):
        raise UserError("teacher.pretrained is missing: the folder or hub id of a diffusers pipeline")
    for key in ("pretrained", "family", "dtype"):
        if not isinstance(given.get(key, ""), str):
            raise UserError(f"teacher.{key} must be text, got {given[key]!r}")
    config = PretrainedConfig(**{**given, "guidance": _scales(given.get("guidance"))})
    if config.dtype not in DTYPES:
        hint = nearest(config.dtype, DTYPES)
        raise UserError(f"teacher.dtype must be one of {', '.join(DTYPES)}, got {config.dtype!r}{hint}")
    return config


def _scales(given: Any) -> list[float]:
    values = [] if given is None else given if isinstance(given, list) else [given]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    good = all(0 <= v < math.inf for v in numbers) and numbers == sorted(numbers)
    if len(numbers) != len(values) or len(values) > 2 or not good:
        raise UserError(f"teacher.guidance must be w or [low, high] with 0 <= low <= high, got {given!r}")
    return numbers
