"""``fmtt rewards [NAME]``: every reward, its arguments, and what it needs."""

from __future__ import annotations

import inspect
import json
from argparse import Namespace
from typing import Any

from fmtt.cli.output import plain
from fmtt.errors import UserError, nearest
from fmtt.rewards import REWARDS, describe
from fmtt.rewards import arguments as constructor

NOTE = (
    "Write NAME:key=value,... and join several as A + 0.5*B, with spaces around the plus sign.\n"
    "Several numbers are joined by colons: colour:rgb=1:0:0.\n"
    "value_range, the model's values for black and white, comes from the export, and device from --device, "
    "unless they are given."
)


def run(args: Namespace) -> None:
    """Print what a specification may name."""
    if args.name is not None and args.name not in REWARDS:
        known = ", ".join(REWARDS)
        raise UserError(f"there is no reward {args.name!r}; rewards: {known}{nearest(args.name, REWARDS)}")
    names = list(REWARDS) if args.name is None else [args.name]
    if args.json:
        print(json.dumps({name: entry(name) for name in names}, indent=2))
        return
    for name in names:
        print("\n".join(_lines(name)), end="\n\n")
    if args.name is not None:
        print(inspect.getdoc(REWARDS[args.name]) or "", end="\n\n")
    print(NOTE)


def entry(name: str) -> dict[str, Any]:
    """A reward as JSON; an unbounded end of its range is null."""
    described = describe(REWARDS[name])
    return plain(
        {
            "summary": described.summary,
            "arguments": [
                {
                    "name": argument.name,
                    "type": argument.type_name,
                    "required": argument.default is constructor.REQUIRED,
                    "default": None if argument.default is constructor.REQUIRED else argument.default,
                }
                for argument in constructor.of(REWARDS[name]).values()
            ],
            "differentiable": described.differentiable,
            "value_range": described.value_range,
            "space": described.space,
            "uses_prompt": described.uses_prompt,
            "max_batch": described.max_batch,
            "remote": described.remote,
        }
    )


def _lines(name: str) -> list[str]:
    described = describe(REWARDS[name])
    keys = [
        f"{argument.name}={argument.default_text}"
        if argument.default is not constructor.REQUIRED
        else f"{argument.name} (required: {argument.type_name})"
        for argument in constructor.of(REWARDS[name]).values()
    ]
    gradient = {True: "differentiable", False: "no gradient", None: "gradient unknown until tried"}
    low, high = described.value_range
    facts = [gradient[described.differentiable], f"values from {low:g} to {high:g}"]
    facts += ["needs pixels"] * (described.space == "pixels") + ["needs latents"] * (
        described.space == "latents"
    )
    facts += ["uses the prompt"] * described.uses_prompt + ["calls a server"] * described.remote
    facts += [f"at most {described.max_batch} samples at a time"] * (described.max_batch is not None)
    return [f"{name}: {described.summary}", f"  {', '.join(keys)}", f"  {'; '.join(facts)}"]
