"""Train the clock with two processes on two cores, and with one process pinned to one core.

Every process has one thread and the same batch, so that perfect scaling is twice the samples per second.
They take turns, and with them two runs that know nothing of each other, one on each core: what those reach
together is what the machine has to give, whoever shares its memory and its caches. Then the order of
samples of 64 ranks, without training: how long it takes to compute, that every sample comes up once per
epoch, and that resuming anywhere gives the same batch. Prints the figures and writes OUT/summary.json.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.order import Order
from fmtt.errors import UserError
from fmtt.files import write_json

TARGET = 1.7
"""The samples per second of two processes over those of one."""
CONFIG = Path(__file__).resolve().parents[2] / "configs/clock/demo.yaml"
RANKS, BATCH, EPOCHS = 64, 32, 2
COUNTS = (4096,) * 127 + (1000,)
COLUMN = "throughput/samples_per_s"
LOG_EVERY = 10
"""As the demo's config does: a logged step waits for the other process."""


def train(run_dir: Path, cores: list[int], steps: int, batch: int) -> float:
    """Samples per second of a run with one process on each of ``cores``, the median over its logged steps."""
    settings = {
        "run_dir": run_dir,
        "max_steps": steps,
        "batch_size": batch,
        "log.every_steps": LOG_EVERY,
        "log.wandb": "false",
        "evaluate.num_samples": 0,
        "evaluate.grid_samples": 0,
        "checkpoint.every_steps": 10 * steps,
        "trainer.devices": len(cores),
        "trainer.strategy": "ddp" if len(cores) > 1 else "auto",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "train", "distill", str(CONFIG), *words]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=CONFIG.parents[2],
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise UserError(f"training on {len(cores)} cores failed: {done.stderr.strip().splitlines()[-1]}")
    with open(run_dir / "metrics.csv", newline="") as file:
        return statistics.median(float(row[COLUMN]) for row in csv.DictReader(file) if row.get(COLUMN))


def apart(folder: Path, cores: list[int], steps: int, batch: int) -> float:
    """Samples per second, together, of one run on each of ``cores`` at the same time."""
    with ThreadPoolExecutor(len(cores)) as pool:
        runs = [pool.submit(train, folder / str(core), [core], steps, batch) for core in cores]
        return sum(run.result() for run in runs)


def measure(steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """The rates of one process, two, and two runs apart; two over one and over two apart, as medians."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("this needs two cores")
    ways: dict[str, Callable[[Path], float]] = {
        "one": lambda folder: train(folder / "run", cores[:1], steps, batch),
        "two": lambda folder: train(folder / "run", cores, steps, batch),
        "apart": lambda folder: apart(folder, cores, steps, batch),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(ways[name](Path(folder)))
            print(f"{name:6s} {rates[name][-1]:8.1f} samples/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = {"ratio": ("two", "one"), "machine": ("apart", "one"), "efficiency": ("two", "apart")}
    shares = {
        name: statistics.median(a / b for a, b in zip(rates[top], rates[bottom], strict=True))
        for name, (top, bottom) in pairs.items()
    }
    return {**medians, **shares}


def simulate(seed: int = 0) -> dict[str, Any]:
    """The samples of RANKS ranks over EPOCHS epochs, checked.

    Raises:
        AssertionError: when a sample is read twice or not at all, or a resumed order differs.
    """
    first, total = np.concatenate([[0], np.cumsum(COUNTS)]), sum(COUNTS)
    start, choose, seen = time.perf_counter(), random.Random(seed), np.zeros((EPOCHS, total), np.int64)
    resumed = 0
    for rank in range(RANKS):
        order = Order(COUNTS, BATCH, seed, rank, RANKS)
        ends = [order._start(epoch) for epoch in range(EPOCHS + 1)]
        steps = -(-ends[-1] // BATCH)
        picks = np.concatenate([order.batch(step) for step in range(steps)])
        numbers = first[picks[:, 0]] + picks[:, 1]
        for epoch in range(EPOCHS):
            np.add.at(seen[epoch], numbers[ends[epoch] : ends[epoch + 1]], 1)
        for step in choose.sample(range(steps), 4):
            again = Order(COUNTS, BATCH, seed, rank, RANKS).batch(step)
            assert np.array_equal(again, picks[step * BATCH : (step + 1) * BATCH]), (
                f"rank {rank}, step {step}"
            )
            resumed += 1
    assert (seen == 1).all(), f"{int((seen != 1).sum())} samples are not read exactly once per epoch"
    seconds = time.perf_counter() - start
    return {"ranks": RANKS, "samples": total, "epochs": EPOCHS, "resumed": resumed, "seconds": seconds}


def main() -> int:
    """Exit status: 0 done, 1 two processes are slower than they should be, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="samples per process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-scale"))
    args = parser.parse_args()
    try:
        order = simulate()
        print(
            f"{order['ranks']} ranks: each of {order['samples']} samples once in each of {order['epochs']} "
            f"epochs, {order['resumed']} resumed batches exact, {order['seconds']:.1f} s",
            flush=True,
        )
        found = measure(args.steps, args.batch, args.rounds)
        print(
            f"two processes / one: {found['ratio']:.2f} (target {TARGET}); two runs apart / one: "
            f"{found['machine']:.2f}; two processes / two runs apart: {found['efficiency']:.2f}"
        )
        passed = found["ratio"] >= TARGET
        settings = {"steps": args.steps, "batch": args.batch, "rounds": args.rounds, "target": TARGET}
        write_json(args.out / "summary.json", {**settings, "passed": passed, **found, "order": order})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out / 'summary.json'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
