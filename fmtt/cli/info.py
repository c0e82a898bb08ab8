"""``fmtt info EXPORT``."""

from __future__ import annotations

import json
from argparse import Namespace

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
        for key, value in config[section].items():
            shown = value if isinstance(value, str | int | float) else json.dumps(value)
            lines[f"{section}: {key}"] = str(shown)
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key:<{width}}  {value}")
