"""``fmtt sample EXPORT --out DIR``: few-step samples, with torch alone."""

from __future__ import annotations

from argparse import Namespace

import fmtt
from fmtt.cli.model import Model, rows
from fmtt.cli.output import Output
from fmtt.cli.progress import Progress, WatchedMap

SHOWN = 256
"""Most images of samples.png."""


def run(args: Namespace) -> None:
    """Write samples.safetensors, samples.png where they are images, and summary.json."""
    model = Model(args)
    out = Output(args.out)
    with Progress("sampling", args.num_samples * args.steps) as bar:
        samples = fmtt.sample(
            WatchedMap(model.map, bar),
            args.num_samples,
            steps=args.steps,
            data_shape=model.map.data_shape,
            cond=rows(model.cond, args.num_samples),
            generator=model.generator(),
            device=model.device,
            dtype=model.dtype,
            chunk_size=args.chunk_size,
        )
    out.tensors("samples.safetensors", {"samples": samples})
    out.picture("samples.png", model.pictures(samples[:SHOWN]), model.values)
    passes = args.steps * args.num_samples
    out.finish(args, {"shape": list(samples.shape), "cost": {"forwards": passes, "passes": passes}})
