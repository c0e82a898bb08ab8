"""Time what everything else is made of: network passes, sampling, tilting. ``make bench`` runs this.

Prints one line per measurement and writes them to OUT/summary.json, so that two machines or two
versions can be compared.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fmtt
from fmtt.errors import UserError
from fmtt.files import write_json
from fmtt.flow.calculus import partial_t
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards import build


def seconds(f: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of one call, after one that is not counted."""
    f()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def passes(flow_map: NeuralFlowMap, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The kinds of pass that training and steering spend, on one batch x (B, *D)."""
    s, t = torch.full_like(x[:, 0, 0, 0], 0.3), torch.full_like(x[:, 0, 0, 0], 0.8)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return flow_map(x, s, t)

    def input_gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(flow_map(leaf, s, t).sum(), leaf)[0]

    def tangent() -> torch.Tensor:
        with torch.no_grad():
            return partial_t(flow_map, x, s, t)[1]

    def tangent_gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(partial_t(flow_map, leaf, s, t)[1].sum(), leaf)[0]

    return {
        "forward": forward,
        "forward + backward": input_gradient,
        "jvp": tangent,
        "jvp + backward of the tangent": tangent_gradient,
    }


def measure(export: str, batch: int, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds by name."""
    flow_map = fmtt.load(export, device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    x = torch.randn(batch, *flow_map.data_shape, generator=generator, device=device)
    reward = build("clock:time=3:47,sharpness=10")
    work = passes(flow_map, x)
    work["sample, 4 steps"] = lambda: fmtt.sample(flow_map, batch, steps=4, generator=generator)
    work["tilt, 10 steps"] = lambda: fmtt.tilt(
        flow_map, reward, num_particles=batch, num_steps=10, weights="path", generator=generator
    )
    found = {}
    for name, f in work.items():
        found[name] = 1000 * seconds(f, repeats)
        print(f"{name:32s} {found[name]:10.1f} ms {found[name] / found['forward']:8.1f} forwards")
    return found


def main() -> int:
    """Exit status: 0 done, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", default="clock-map")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{args.export}, batch {args.batch}, {args.device}, {threads} threads, torch {torch.__version__}")
    try:
        found = measure(args.export, args.batch, args.repeats, args.device)
        settings = {"export": args.export, "batch": args.batch, "device": args.device, "threads": threads}
        versions = {"torch": torch.__version__, "fmtt": fmtt.__version__, "python": platform.python_version()}
        write_json(args.out / "summary.json", {**settings, "versions": versions, "milliseconds": found})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
