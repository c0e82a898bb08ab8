"""The arguments of ``fmtt prompts``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fmtt.cli.arguments import DTYPES, Sum, one_of, real, share, whole
from fmtt.evaluation.prompt_suite import LAYOUTS

METHODS = ("sample", "best_of_n", "tilt", "search")


def add_to(command: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    add = command.add_argument
    add("model", metavar="MODEL", help="folder or hub id of a text-to-image pipeline")
    add("suite", type=Path, metavar="FILE", help="prompts: JSON lines, or .csv")
    add("--layout", type=one_of(("auto", *LAYOUTS)), default="auto", help=", ".join(("auto", *LAYOUTS)))
    add("--method", type=one_of(METHODS), default="search", help=", ".join(METHODS))
    add("--reward", action=Sum, metavar="NAME[:key=value,...]", help="what is optimised")
    add("--judge", metavar="NAME[:key=value,...]", help="another reward, reported and never optimised")
    add("--num-images", type=whole(1), default=4, help="of each prompt (default: %(default)s)")
    add("--num-particles", type=whole(1), default=8, help="behind each image (default: %(default)s)")
    add("--steps", type=whole(1), default=8, help="of the sampler (default: %(default)s)")
    add("--keep", type=whole(1), default=2, help="survivors of a search's selection (default: %(default)s)")
    add("--rounds", type=whole(1), default=4, help="selections of a search (default: %(default)s)")
    add("--height", type=whole(1), help="in pixels (default: the model's)")
    add("--width", type=whole(1), help="in pixels (default: the model's)")
    add("--guidance-scale", type=real(0), metavar="W", help="(default: none)")
    add("--dtype", type=one_of(DTYPES), default="bfloat16", help="of the weights (default: %(default)s)")
    add("--chunk-size", type=whole(1), help="images per network call; bounds memory")
    add("--part", type=share, default=(0, 1), metavar="K/N", help="every N-th prompt from the K-th on")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    add("--seed", type=whole(0), default=0, help="of the random numbers (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there)")
