"""What tilting costs beyond the network, the reward and their derivatives. ``make bench-tilt`` runs this.

Time: one process's CPU time of ``fmtt.tilt`` less what was spent in the network, in the reward and in reverse
passes, as a share of the whole. Memory: the peak of what torch allocates (weights not counted) for 64
particles in chunks, against a floor: the peak for one chunk's particles alone, and what every other particle
has to hold meanwhile (the state that it has reached, its velocity and its gradient there).

Prints a line per case and writes OUT/summary.json; exit status 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fmtt
from fmtt.errors import UserError
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.dit import DiT
from fmtt.rewards import build

PARTICLES, CHUNK, STEPS = 64, 16, 10
LEAST_FORWARD = 0.020
"""CPU seconds that a forward of all particles takes at least; beside less, any overhead looks large."""
MOST_OWN, MOST_MEMORY = 0.03, 1.10
HELD = 3
"""Tensors of the particles' own shape that the floor grants."""
CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "path, adaptive, resampled at every step": {
        "weights": "path",
        "schedule": "adaptive",
        "ess_threshold": 1.0,
    },
    "path, denoiser": {"weights": "path", "lookahead": "denoiser"},
}


class Meter:
    """CPU seconds spent inside what it wraps, nested calls counted once."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.process_time()
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.seconds += time.process_time() - start

    def wrap(self, f: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return f(*args, **kwargs)

        return metered


class Metered:
    """A flow map whose calls are metered."""

    def __init__(self, flow_map: NeuralFlowMap, meter: Meter) -> None:
        self.interpolant, self.data_shape = flow_map.interpolant, flow_map.data_shape
        self.velocity, self.jump = meter.wrap(flow_map.velocity), meter.wrap(flow_map)

    def __call__(self, *args: Any) -> Tensor:
        return self.jump(*args)


def network(depth: int) -> NeuralFlowMap:
    """A transformer of the clock's shape with random weights."""
    torch.manual_seed(0)
    net = DiT((3, 32, 32), patch=8, dim=128, depth=depth, heads=4)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return NeuralFlowMap(net, fmtt.Linear(), (3, 32, 32)).eval()


def forward_seconds(flow_map: NeuralFlowMap, repeats: int = 3) -> float:
    """CPU seconds of one forward of all particles, the least of a few."""
    x, taken = torch.randn(PARTICLES, *flow_map.data_shape), []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.process_time()
            flow_map(x, 0.3, 1.0)
            taken.append(time.process_time() - start)
    return min(taken[1:])


def tilt(flow_map: Any, reward: Any, **options: Any) -> fmtt.TiltResult:
    """One run of a case."""
    settings = {"num_particles": PARTICLES, "num_steps": STEPS, **options}
    return fmtt.tilt(flow_map, reward, generator=torch.Generator().manual_seed(0), **settings)


def own_share(flow_map: NeuralFlowMap, reward: Any, repeats: int, **options: Any) -> float:
    """The share of CPU time spent in fmtt's own code: the median of a few runs, after one not counted."""
    tilt(flow_map, reward, **{**options, "num_steps": 2})
    shares, grad = [], torch.autograd.grad
    for _ in range(repeats):
        meter = Meter()
        scored = meter.wrap(reward)
        torch.autograd.grad = meter.wrap(grad)
        try:
            start = time.process_time()
            tilt(Metered(flow_map, meter), scored, **options)
            total = time.process_time() - start
        finally:
            torch.autograd.grad = grad
        shares.append(1 - meter.seconds / total)
    return sorted(shares)[len(shares) // 2]


def peak_bytes(f: Callable[[], object]) -> int:
    """The most bytes that torch held at once during a call, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        f()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events: list[Any] = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(depth: int, repeats: int) -> dict[str, Any]:
    """All figures."""
    flow_map, reward = network(depth), build("clock:time=3:47,sharpness=10")
    forward = forward_seconds(flow_map)
    print(f"forward of {PARTICLES} particles: {1000 * forward:.1f} ms of CPU time")
    if forward < LEAST_FORWARD:
        raise UserError(
            f"a forward takes {1000 * forward:.1f} ms: give a larger --depth, so that it takes 20"
        )
    shares, memory = {}, {}
    row = 4 * torch.Size(flow_map.data_shape).numel()
    for name, options in CASES.items():
        shares[name] = own_share(flow_map, reward, repeats, **options)
        few = {**options, "num_steps": 3}
        whole = peak_bytes(lambda few=few: tilt(flow_map, reward, chunk_size=CHUNK, **few))
        chunk = peak_bytes(lambda few=few: tilt(flow_map, reward, **{**few, "num_particles": CHUNK}))
        floor = chunk + HELD * (PARTICLES - CHUNK) * row
        found = {"peak_bytes": whole, "chunk_bytes": chunk, "floor_bytes": floor}
        memory[name] = {**found, "ratio": whole / floor, "ratio_to_chunk": whole / chunk}
        print(
            f"{name:42s} own code {shares[name]:6.2%}   peak {whole / 2**20:6.1f} MiB, "
            f"floor {floor / 2**20:6.1f} MiB, ratio {whole / floor:.3f} (to one chunk's {whole / chunk:.3f})",
            flush=True,
        )
    return {"forward_seconds": forward, "own_share": shares, "memory": memory}


def main() -> int:
    """Exit status: 0 within the targets, 1 not, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=6, help="blocks of the network")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-tilt"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        make_writable(args.out, "--out")
        found = measure(args.depth, args.repeats)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    met = max(found["own_share"].values()) <= MOST_OWN and all(
        m["ratio"] <= MOST_MEMORY for m in found["memory"].values()
    )
    targets = {"own_share": MOST_OWN, "memory_ratio": MOST_MEMORY}
    settings = {"particles": PARTICLES, "chunk_size": CHUNK, "steps": STEPS, "depth": args.depth}
    write_json(args.out / "summary.json", {**settings, **found, "targets": targets, "met": met})
    print(
        f"{'within' if met else 'OUTSIDE'} {MOST_OWN:.0%} and {MOST_MEMORY:g}; "
        f"wrote {args.out / 'summary.json'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
