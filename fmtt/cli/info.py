"""``fmtt info EXPORT``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from fmtt.models.checkpoint import load


def run(args: Namespace) -> None:
    """Print what an export holds."""
    flow_map = load(args.export)
    config = flow_map.config
    if args.json:
        print(json.dumps(config, indent=2))
        return
    network = config["network"]
    parameters = sum(p.numel() for p in flow_map.parameters())
    settings = ", ".join(f"{key}={value}" for key, value in network["args"].items())
    lines = {
        "kind": config["kind"].replace("_", " "),
        "network": f"{network['name']} ({settings})" if settings else network["name"],
        "parameters": f"{parameters:,}",
        "data shape": " × ".join(map(str, config["data_shape"])),
        "interpolant": config["interpolant"],
        "prediction": config["prediction"],
        "direction": "both" if config["bidirectional"] else "forward (from noise to data)",
    }
    for section in ("trained", "metrics"):
        lines |= {f"{section}: {key}": value for key, value in flat(config[section]).items()}
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key:<{width}}  {value}".rstrip())


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A line per leaf, named by its path: ``measured.rmse.map_1``; numbers to four digits."""
    found: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            found[name] = " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
    return found
