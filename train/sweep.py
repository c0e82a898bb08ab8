"""``python -m train.sweep GRID.yaml INDEX``: the ``key=value`` overrides of one point of a grid, a line each.

A grid maps keys of a training configuration to lists of values; its points are all combinations, the last
key changing fastest:

    optimizer.lr: [1.0e-3, 3.0e-4]
    objective.name: [lsd, psd]
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fmtt.errors import UserError


def points(path: Path) -> list[list[str]]:
    """The overrides of every point.

    Raises:
        UserError: for a missing file, or one that is not a mapping of keys to lists.
    """
    try:
        grid: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"grid {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"grid {path} must map keys to lists, such as optimizer.lr: [1.0e-3, 3.0e-4]")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid {path}: {key} must be a list of values, such as {key}: [{values}]")
    axes = [[f"{key}={_text(value)}" for value in values] for key, values in grid.items()]
    return [list(point) for point in itertools.product(*axes)]


def _text(value: Any) -> str:
    """A value as key=value takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 what the user gave is wrong."""
    try:
        if len(arguments) != 2 or not arguments[1].isdecimal():
            raise UserError("usage: python -m train.sweep GRID.yaml INDEX")
        every, index = points(Path(arguments[0])), int(arguments[1])
        if index >= len(every):
            wanted = f"submit with --array=0-{len(every) - 1}"
            raise UserError(f"grid {arguments[0]} has {len(every)} points, not a number {index}: {wanted}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(every[index]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
