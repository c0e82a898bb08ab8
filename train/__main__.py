"""``python -m train pretrain|distill CONFIG.yaml [key=value ...]``, ``export RUN_DIR OUT_DIR``, ``demo``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from data.extra import how_to_install
from fmtt.errors import UserError
from train.lost_process import LostProcess
from train.preemption import listening


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise UserError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = _Parser(prog="python -m train", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for stage, text in (
        ("pretrain", "train a velocity model by flow matching"),
        ("distill", "distil a velocity model into a flow map"),
    ):
        command = commands.add_parser(stage, help=text)
        command.add_argument("config", type=Path, help="YAML file")
        command.add_argument("overrides", nargs="*", metavar="key=value")
    export = commands.add_parser("export", help="write a run's averaged weights as an export folder")
    export.add_argument("run_dir", type=Path)
    export.add_argument("out_dir", type=Path)
    export.add_argument("--merge", action="store_true", help="fold LoRA adapters into the transformer")
    export.add_argument("--diffusers", action="store_true", help="write a whole pipeline's folder")
    export.add_argument("--half", action="store_true", help="store weights in 16 bits: half the size")
    text = "which of ema.half_lives (default: the first)"
    export.add_argument("--half-life", type=float, metavar="STEPS", help=text)
    demo = commands.add_parser("demo", help="the clock, end to end: distil, export, evaluate, tilt, report")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument("--fresh", action="store_true", help="delete earlier results first")
    return root


def run(arguments: argparse.Namespace) -> None:
    """Execute a parsed command line."""
    if arguments.command in ("pretrain", "distill"):
        with listening():  # the imports below take seconds
            from train.config import load_config
            from train.run import say, train

            run_dir = train(load_config(arguments.config, arguments.overrides), arguments.command)
        say(f"{run_dir}: finished; next: python -m train export {run_dir} EXPORT_DIR")
    elif arguments.command == "export":
        from train.export import export_run

        options = {"merged": arguments.merge, "pipeline": arguments.diffusers, "half": arguments.half}
        options |= {"half_life": arguments.half_life}
        print(f"wrote {export_run(arguments.run_dir, arguments.out_dir, **options)}")
    else:
        from train.demo.demo import demo

        demo(arguments.out, fresh=arguments.fresh)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 what the user gave is wrong, 128 + a signal that stopped it, 1 anything else."""
    try:
        run(parser().parse_args(argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {how_to_install(error)}", file=sys.stderr)
        return 2
    except LostProcess as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
