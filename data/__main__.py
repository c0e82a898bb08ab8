"""``python -m data write SET``, ``encode SHARDS --model PIPELINE`` and ``verify DIR``: data sets."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from data.encode import add_arguments as add_encode_arguments
from data.encode import encode as run_encode
from data.extra import how_to_install
from data.procedural import PROCEDURAL
from data.store import TIMEOUT, TRIES, Folder, open_store
from data.verify import verify_shards
from data.write_shards import SHARD_SIZE, write_procedural
from fmtt.errors import UserError
from fmtt.files import write_json

SUMMARY_NAME = "summary.json"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m data", description="Write and check data sets.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="write|encode|verify", parser_class=_Parser)
    write = commands.add_parser(
        "write",
        allow_abbrev=False,
        help="write a computed set as webdataset shards",
        description="Write a computed set as webdataset shards. An interrupted write continues when the "
        "same command is run again.",
    )
    write.add_argument("set", help=f"one of {', '.join(PROCEDURAL)}")
    write.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the shards")
    write.add_argument("--num-samples", required=True, type=int, metavar="N", help="size of the set")
    write.add_argument("--shard-size", type=int, default=SHARD_SIZE, metavar="N", help="samples a shard")
    write.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and i alone")
    write.add_argument(
        "--processes", type=int, default=1, metavar="N", help="how many write; the files are the same"
    )
    write.set_defaults(run=_write)
    encode = commands.add_parser(
        "encode",
        allow_abbrev=False,
        help="turn images and captions into latents and prompt embeddings",
        description="Turn images and captions into shards of latents and prompt embeddings for a "
        "text-to-image model. An interrupted command continues when it is run again.",
    )
    add_encode_arguments(encode)
    encode.set_defaults(run=lambda args: run_encode(args, _progress))
    verify = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="check every sample of a set of shards",
        description="Check sizes, checksums and every sample of a set of shards.",
    )
    verify.add_argument(
        "source", metavar="SOURCE", help="folder of the shards, http(s)://..., or 'pipe:COMMAND {shard}'"
    )
    verify.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder of {SUMMARY_NAME}, default: the shards'"
    )
    verify.add_argument("--processes", type=int, default=1, metavar="N", help="how many read")
    verify.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="S",
        help="seconds until a silent source is given up",
    )
    verify.add_argument(
        "--tries", type=int, default=TRIES, metavar="N", help="how often a shard is asked for"
    )
    verify.set_defaults(run=_verify)
    return parser


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A function that shows how many samples are done, and in all: a bar on a terminal, lines in a log."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, of=total: bar.update(task, completed=done, total=of)
        return
    last = time.monotonic()

    def line(done: int, of: int | None = total) -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            last = time.monotonic()
            print(f"{title}: {done}" + (f" of {of}" if of else "") + " samples", flush=True)

    yield line


def _write(args: argparse.Namespace) -> int:
    start = time.monotonic()
    with _progress(f"write {args.set}", args.num_samples) as progress:
        index, kept = write_procedural(
            args.set,
            args.out,
            args.num_samples,
            seed=args.seed,
            shard_size=args.shard_size,
            processes=args.processes,
            progress=progress,
        )
    size = sum(shard.bytes for shard in index.shards)
    summary = {"command": "write", "set": args.set, "seed": args.seed, "num_samples": args.num_samples}
    summary |= {"shards": len(index.shards), "shards_kept": kept, "bytes": size}
    write_json(args.out / SUMMARY_NAME, {**summary, "seconds": round(time.monotonic() - start, 3)})
    print(f"{args.out}: {index.header}, {len(index.shards)} shards ({kept} kept), {size / 1e6:.1f} MB")
    return 0


def _verify(args: argparse.Namespace) -> int:
    start = time.monotonic()
    store = open_store(args.source, timeout=args.timeout, tries=args.tries)
    out = args.out or (store.path if isinstance(store, Folder) else None)
    if out is None:
        raise UserError(f"give --out DIR, the folder for {SUMMARY_NAME}: {args.source} is no folder")
    with _progress(f"verify {args.source}", None) as progress:
        index, problems, extra = verify_shards(store, progress, processes=args.processes)
    bad = sum(problem.count for problem in problems)
    summary = {"command": "verify", "set": index.header.name, "seed": index.header.seed}
    summary |= {"num_samples": index.header.num_samples, "shards": len(index.shards), "bad_samples": bad}
    summary |= {"problems": [str(problem) for problem in problems], "unlisted": extra}
    summary |= {"ok": not problems, "seconds": round(time.monotonic() - start, 3)}
    write_json(out / SUMMARY_NAME, summary)
    for problem in problems:
        print(problem)
    for name in extra:
        print(f"{name}: not in the index, never read")
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            f"{args.source}: {problems[0]}{more}; "
            "delete the shards named and run `python -m data write` or `encode` again"
        )
    print(f"{args.source}: {index.header}, every sample in order")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for a wrong argument or file, 130 after Ctrl-C, 1 for anything else."""
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {how_to_install(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
