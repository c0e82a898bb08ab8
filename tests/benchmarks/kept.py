"""What benchmarks of many cells share: results that are computed once, and estimates with standard errors."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmtt.evaluation.comparison import statistics
from fmtt.evaluation.style import png
from fmtt.files import atomic_write, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Estimate = list[float]
"""[value, standard error], as JSON holds it."""


def digest(network: nn.Module) -> str:
    """Eight hexadecimal digits of a network's weights: what is kept of one is not another's."""
    parts = (value.detach().cpu().contiguous().numpy().tobytes() for value in network.state_dict().values())
    return f"{reduce(lambda found, part: zlib.crc32(part, found), parts, 0):08x}"


def kept(
    folder: Path, name: str, asked: dict[str, Any], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result in ``folder/name.json`` if it was computed for the same ``asked``; else that of ``work()``.

    Args:
        asked, work's result: JSON values.
    """
    path, asked = folder / f"{name}.json", json.loads(json.dumps(asked))  # tuples as they are read again
    try:
        stored = json.loads(path.read_text())
        if stored["asked"] == asked:
            return stored["result"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not one of ours: it is computed anew
    write_json(path, {"asked": asked, "result": work()})
    print(f"{name}: done", flush=True)
    return json.loads(path.read_text())["result"]


def generator(name: str, seed: int = 0) -> torch.Generator:
    """A stream of its own for every name."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def mean(values: Tensor) -> Estimate:
    """Mean of (P,) independent values; of values that are all 0 or 1, a rate."""
    return list(statistics.mean(values.double()))


def spread(values: Tensor) -> Estimate:
    """Standard deviation of (P,) independent values, and its standard error by the jackknife."""
    values, P = values.double(), len(values)
    if P < 3:
        return [float(values.std()), math.nan]
    total, square = values.sum() - values, values.square().sum() - values.square()
    without = ((square - total.square() / (P - 1)).clamp_min(0) / (P - 2)).sqrt()  # (P,), one left out
    error = ((P - 1) / P * (without - without.mean()).square().sum()).sqrt()
    return [float(values.std()), float(error)]


def write_png(figure: Figure, path: Path) -> None:
    """Render a figure into a file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns aligned."""
    cells = [list(head), *map(list, lines)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in cells)


def shown(estimate: Sequence[float], digits: int = 2) -> str:
    """``value ± standard error``."""
    return f"{estimate[0]:.{digits}f} ± {estimate[1]:.{digits}f}"
