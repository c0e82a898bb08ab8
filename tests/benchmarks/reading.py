"""Read shards through our loader, through plain webdataset, and as one tar file after another.

All three decode each sample with the same code and hand out the same float32 batches; ours also compares
checksums, shuffles exactly and can start anywhere. They take turns, so that a busy machine slows them alike.
Prints how fast each is beside ours, and writes OUT/summary.json.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset as wds

from data.index import INDEX_NAME, Index, read_index
from data.members import Member, members
from data.shards import ShardBatches
from data.stream import Layout, Stream
from data.write_shards import write_procedural
from fmtt.errors import UserError
from fmtt.files import write_json

TARGET = 0.9
"""The share of the others' throughput that ours should have at least."""


def through_loader(folder: Path, index: Index, batch: int, ahead: int) -> Iterator[torch.Tensor]:
    """An epoch as training reads it, nothing kept from before."""
    layout = Layout(batch)
    stream = Stream(lambda rank: ShardBatches(folder, batch, cache_bytes=0), layout, ahead=ahead)
    for one in islice(stream, index.header.num_samples // batch):
        yield one.x


def through_webdataset(folder: Path, index: Index, batch: int) -> Iterator[torch.Tensor]:
    """An epoch of webdataset's own pipeline, in the order of the shards."""
    (x,) = members(index.header)[:1]
    urls = [str(folder / shard.name) for shard in index.shards]
    samples = wds.WebDataset(urls, shardshuffle=False)  # type: ignore[attr-defined]
    yield from _batched((x.decode(sample) for sample in samples), x, batch)


def raw(folder: Path, index: Index, batch: int) -> Iterator[torch.Tensor]:
    """An epoch of the standard library's tar reader, in the order of the shards."""
    (x,) = members(index.header)[:1]

    def arrays() -> Iterator[np.ndarray]:
        for shard in index.shards:
            with tarfile.open(folder / shard.name, "r|") as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    content = file.read()  # of every member, as a stream must
                    if member.name.endswith(x.name):
                        yield x.decode({x.name: content})

    yield from _batched(arrays(), x, batch)


def _batched(arrays: Iterator[np.ndarray], member: Member, batch: int) -> Iterator[torch.Tensor]:
    while len(rows := list(islice(arrays, batch))) == batch:
        yield member.tensor(np.stack(rows))


def epoch(batches: Iterator[torch.Tensor], batch: int) -> tuple[float, float]:
    """Samples per second of wall-clock time, and of this process's processor time."""
    wall, processor, count = time.perf_counter(), time.process_time(), 0
    for x in batches:
        assert x.shape[0] == batch and x.dtype == torch.float32
        count += batch
    return count / (time.perf_counter() - wall), count / (time.process_time() - processor)


def measure(folder: Path, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds after the first; ``ratio`` is ours over the other's, by round."""
    index = read_index(folder / INDEX_NAME)
    readers: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        "loader": lambda: through_loader(folder, index, batch, 2),
        "loader, not ahead": lambda: through_loader(folder, index, batch, 0),
        "webdataset": lambda: through_webdataset(folder, index, batch),
        "raw tar": lambda: raw(folder, index, batch),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    names = list(readers)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # nobody always goes first
            rate = epoch(readers[name](), batch)
            if number:
                rates[name].append(rate)
    found = {}
    for name, values in rates.items():
        pairs = list(zip(rates["loader"], values, strict=True))
        found[name] = {
            "samples_per_second": statistics.median(wall for wall, _ in values),
            "samples_per_processor_second": statistics.median(processor for _, processor in values),
            "ratio": statistics.median(ours[0] / other[0] for ours, other in pairs),
            "ratio_of_processor_time": statistics.median(ours[1] / other[1] for ours, other in pairs),
        }
        wall, processor = found[name]["ratio"], found[name]["ratio_of_processor_time"]
        line = f"{name:18s} {found[name]['samples_per_second']:10.0f} samples/s"
        print(f"{line}   loader / this {wall:5.2f}, by processor time {processor:5.2f}", flush=True)
    return found


def main() -> int:
    """Exit status: 0 done, 1 ours is slower than it should be, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="clock", help="a computed set, written to a temporary folder")
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--shard-size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_procedural(args.set, folder, args.samples, shard_size=args.shard_size)
            found = measure(Path(folder), args.batch, args.rounds)
        names = ("set", "samples", "shard_size", "batch", "rounds")
        settings = {name: getattr(args, name) for name in names}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        versions["webdataset"] = version("webdataset")
        passed = all(found[name]["ratio"] >= TARGET for name in ("webdataset", "raw tar"))
        summary = {"target": TARGET, "passed": passed, "readers": found, "versions": versions}
        write_json(args.out / "summary.json", {**settings, **summary})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out / 'summary.json'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
