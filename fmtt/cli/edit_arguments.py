"""The arguments of ``fmtt edit``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fmtt.cli.arguments import DTYPES, Sum, one_of, real, whole
from fmtt.steering.lookahead import NAMES as LOOKAHEADS
from fmtt.steering.rule import WEIGHTS


def add_to(command: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    add = command.add_argument
    add("model", metavar="MODEL", help="folder or hub id of a text-to-image pipeline")
    add("picture", type=Path, metavar="PICTURE", help="what is edited")
    add("--prompt", required=True, metavar="TEXT", help="what the picture shows, or shall show")
    add("--reward", required=True, action=Sum, metavar="NAME[:key=value,...]", help="what is asked of it")
    add("--mask", type=Path, metavar="FILE", help="white where the picture may change (default: anywhere)")
    add("--strength", type=real(0, 1), default=0.6, help="share of it that is lost (default: %(default)s)")
    add("--num-particles", type=whole(1), default=8, help="(default: %(default)s)")
    add("--num-steps", type=whole(1), default=16, help="of the whole way from noise (default: %(default)s)")
    add("--lookahead", type=one_of(LOOKAHEADS), default="flow_map", help=", ".join(LOOKAHEADS))
    # Exact weights take the start for the model's own law at that time, which a noised picture is not.
    add(
        "--weights", type=one_of(WEIGHTS), default="path", help=f"{', '.join(WEIGHTS)} (default: %(default)s)"
    )
    add("--height", type=whole(1), help="in pixels (default: the model's, to which the picture is stretched)")
    add("--width", type=whole(1), help="in pixels (default: the model's)")
    add("--guidance-scale", type=real(0), metavar="W", help="(default: none)")
    add("--dtype", type=one_of(DTYPES), default="bfloat16", help="of the weights (default: %(default)s)")
    add("--chunk-size", type=whole(1), help="images per network call; bounds memory")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    add("--seed", type=whole(0), default=0, help="of the random numbers (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there)")
