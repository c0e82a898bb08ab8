"""The arguments of every command. Mistakes become one line that names the nearest right word."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import fmtt
from fmtt.cli import edit_arguments, prompts_arguments
from fmtt.cli.arguments import DTYPES, Sum, amounts, one_of, real, whole
from fmtt.errors import UserError, nearest
from fmtt.evaluation.comparison import UNITS
from fmtt.steering.lookahead import NAMES as LOOKAHEADS
from fmtt.steering.resampling import RESAMPLERS
from fmtt.steering.rule import KERNELS, WEIGHTS
from fmtt.steering.selection import SELECTIONS
from fmtt.steering.setup import GRADIENTS, INITS
from fmtt.steering.shift import STEP_SIZES

MATRICES = ("quick", "full", "none")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors with a hint; it takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.commands: dict[str, Parser] = {}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = getattr(found, "command", None)
            known = self.commands[command]._option_string_actions if command else self._option_string_actions
            hint = nearest(unknown[0].partition("=")[0], known) or f"; see {self.prog} {command} --help"
            raise UserError(f"unknown argument {unknown[0]!r}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)'", message)
        if wrong and self.commands:
            known = ", ".join(self.commands)
            hint = nearest(wrong[1], self.commands)
            raise UserError(f"there is no command {wrong[1]!r}, commands: {known}{hint}")
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _runner(module: str) -> Callable[[argparse.Namespace], None]:
    """A command's ``run``, imported when it is called."""
    return lambda args: import_module(f"fmtt.cli.{module}").run(args)


def _shared(command: Parser, *, needs_out: bool = True) -> None:
    out_help = "folder for what is written"
    command.add_argument("--out", type=Path, required=needs_out, metavar="DIR", help=out_help)
    command.add_argument(
        "--seed", type=whole(0), default=0, help="of the random numbers (default: %(default)s)"
    )
    command.add_argument("--label", type=whole(0), help="class label, for class-conditional exports")
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there)")


def _guidance(command: Parser) -> None:
    text = "for exports that take a guidance scale (default: 1; of a text-to-image model: the export's)"
    command.add_argument("--guidance-scale", type=real(0), metavar="W", help=text)


def _text(command: Parser) -> None:
    add = command.add_argument
    add("--prompt", metavar="TEXT", help="for exports of text-to-image models")
    _guidance(command)
    add("--negative-prompt", metavar="TEXT", help="of their guidance by two passes")
    add("--height", type=whole(1), help="of their pictures in pixels (default: the export's)")
    add("--width", type=whole(1), help="of their pictures in pixels (default: the export's)")
    add(
        "--dtype",
        type=one_of(DTYPES),
        help="of the weights (default: float32; a pipeline's as stored)",
    )


def _steering(command: Parser, particles: int, schedules: str = "") -> None:
    add = command.add_argument
    reward_help = (
        "what to steer towards, e.g. clock:time=3:47,sharpness=40; 'A + 0.5*B', or repeated, adds up"
    )
    add("--reward", required=True, action=Sum, metavar="NAME[:key=value,...]", help=reward_help)
    add("--num-particles", type=whole(1), default=particles, help="per population (default: %(default)s)")
    add("--num-populations", type=whole(1), default=1, help="independent runs (default: %(default)s)")
    add("--lookahead", type=one_of(LOOKAHEADS), default="flow_map", help=", ".join(LOOKAHEADS))
    add("--lookahead-steps", type=whole(1), default=1, help="steps of the look-ahead (default: %(default)s)")
    add("--lookahead-map", metavar="EXPORT", help="another map to look ahead by")
    add("--lookahead-tol", type=real(0, 1), default=1e-5, help="of the ode look-ahead (default: %(default)s)")
    add("--checkpoint", action="store_true", help="repeat look-ahead steps in the reverse pass: less memory")
    add("--schedule", default="linear", help=f"strength of the reward over time: linear, ramp:T{schedules}")
    add("--times", default="uniform", help="uniform, or shifted:S (S > 1: more steps on the noisy end)")
    add("--noise", type=real(0), default=1.0, help="multiplier of the SDE's noise (default: %(default)s)")
    add("--guidance", type=real(0), default=1.0, help="multiplier of the reward's gradient")
    step_help = "of a guided step: gradient; clipped to, or normalized to, GUIDANCE sd of the noise"
    add("--step-size", type=one_of(STEP_SIZES), default="gradient", help=step_help)
    add("--gradient", type=one_of(GRADIENTS), default="auto", help=", ".join(GRADIENTS))
    add("--num-probes", type=whole(1), default=1, help="random directions for chi or --gradient zeroth")
    add("--probe-scale", type=real(0), default=0.1, help="of --gradient zeroth, in data units")
    add("--init", type=Path, metavar="FILE", help="start from these samples (safetensors)")
    add("--init-is", type=one_of(INITS), default="clean", help="finished (clean), or states at --t-start")
    add("--t-start", type=real(0, 1), default=0.0, help="where to start from --init: 0 keeps nothing of it")
    add("--kernel", type=one_of(KERNELS), default="sde", help=", ".join(KERNELS))
    add("--teacher", metavar="EXPORT", help="an export whose velocity drives the particles instead")
    add("--chunk-size", type=whole(1), help="particles per network call; bounds memory")
    add("--max-reward-calls", type=whole(1), help="refuse to start beyond this many")
    judge_help = "who reads the samples: clock, none, or a reward to hold out; auto: clock for a clock"
    add("--judge", default="auto", metavar="JUDGE", help=judge_help)
    add(
        "--tolerance",
        type=real(0),
        default=10.0,
        help="of the clock judge, in minutes (default: %(default)s)",
    )
    _shared(command)
    _text(command)


def build_parser() -> Parser:
    """The parser of ``fmtt``; the parsed arguments hold the command's ``run``."""
    parser = Parser(prog="fmtt", description="Sample from flow maps, and steer them towards rewards.")
    parser.add_argument("--version", action="version", version=f"fmtt {fmtt.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, module: str, nargs: str | None = None) -> Parser:
        made = commands.add_parser(name, help=text, description=text)
        export_help = "an export's folder, or the name of a shipped one"
        made.add_argument("export", metavar="EXPORT", nargs=nargs, help=export_help)
        made.set_defaults(run=_runner(module))
        parser.commands[name] = made
        return made

    info = command("info", "Say what an export holds.", "info")
    info.add_argument("--json", action="store_true", help="print config.json instead")

    rewards = commands.add_parser("rewards", help="List rewards and their arguments.")
    rewards.add_argument("name", nargs="?", metavar="NAME", help="show one of them in full")
    rewards.add_argument("--json", action="store_true", help="print JSON instead")
    rewards.set_defaults(run=_runner("rewards"))
    parser.commands["rewards"] = rewards

    sample = command("sample", "Draw samples in a few steps of the flow map.", "sample")
    sample.add_argument("--steps", type=whole(1), default=4, help="steps of the map (default: %(default)s)")
    sample.add_argument("--num-samples", type=whole(1), default=16, help="(default: %(default)s)")
    sample.add_argument("--chunk-size", type=whole(1), default=256, help="samples per network call")
    _shared(sample)
    _text(sample)

    tilt = command("tilt", "Sample from the model's law tilted by a reward, with weights.", "tilt")
    tilt.add_argument("--num-steps", type=whole(1), default=50, help="of the SDE (default: %(default)s)")
    tilt.add_argument(
        "--weights", type=one_of(WEIGHTS), help=f"{', '.join(WEIGHTS)} (exact; path for clean --init)"
    )
    tilt.add_argument("--ess-threshold", type=real(0, 1), default=0.5, help="resample below this fraction")
    tilt.add_argument("--chi", type=real(0), default=0.0, help="extra drift along the reward's gradient")
    tilt.add_argument("--gradient-every", type=whole(1), default=1, help="steps between look-aheads")
    tilt.add_argument("--resample", type=one_of(RESAMPLERS), default="systematic", help=", ".join(RESAMPLERS))
    tilt.add_argument("--resample-at", type=real(0, 1), nargs="+", metavar="T", help="at these times only")
    tilt.add_argument("--resample-share", type=real(0, 1), default=1.0, help="part of the particles")
    tilt.add_argument("--final-resample", action="store_true", help="end with equal weights")
    _steering(tilt, 64, ", adaptive, adaptive:CESS")

    search = command("search", "Spend a budget on samples of high reward.", "search")
    search.add_argument(
        "--keep", type=whole(1), default=4, help="survivors of a selection (default: %(default)s)"
    )
    search.add_argument(
        "--selection", type=one_of(SELECTIONS), default="top", help="keep the best, or draw by reward"
    )
    search.add_argument("--temperature", type=real(0), default=1.0, help="of a tempered selection")
    search.add_argument("--rounds", type=whole(1), default=4, help="selections (default: %(default)s)")
    search.add_argument(
        "--num-steps", type=whole(1), help="of the SDE (default: 50; with renoise rounds + 1)"
    )
    _steering(search, 16)

    evaluate = command("evaluate", "Measure look-ahead accuracy; needs the extra [evaluate].", "evaluate")
    evaluate.add_argument(
        "--teacher", metavar="EXPORT", help="the reference (default: the map's own diagonal)"
    )
    evaluate.add_argument("--num-samples", type=whole(2), default=128, help="(default: %(default)s)")
    evaluate.add_argument("--reward", metavar="NAME[:key=value,...]", help="also measure look-ahead rewards")
    evaluate.add_argument("--gradient-samples", type=whole(2), default=16, help="spent on reward gradients")
    evaluate.add_argument("--chunk-size", type=whole(1), default=128, help="samples per network call")
    _shared(evaluate)
    _text(evaluate)

    certify = command("certify", "Say which weights a map allows, and why; needs [evaluate].", "certify", "?")
    certify.add_argument("--reward", metavar="NAME[:key=value,...]", help="(default: a random linear one)")
    certify.add_argument("--teacher", metavar="EXPORT", help="whose velocity drives the particles")
    certify.add_argument("--num-samples", type=whole(4), help="ODE trajectories (default: 256; quick: 32)")
    certify.add_argument("--num-particles", type=whole(2), help="per population (default: 32; quick: 8)")
    certify.add_argument("--num-steps", type=whole(2), help="of the SDE (default: 50; quick: 20)")
    certify.add_argument("--quick", action="store_true", help="a first look: small sizes, no matrix")
    certify.add_argument("--matrix", type=one_of(MATRICES), help=f"closed-form laws: {', '.join(MATRICES)}")
    certify.add_argument("--matrix-only", action="store_true", help="print the closed-form table and stop")
    certify.add_argument("--chunk-size", type=whole(1), default=64, help="samples per network call")
    _shared(certify, needs_out=False)
    _guidance(certify)

    compare = command("compare", "Compare methods at equal cost; needs the extra [evaluate].", "compare")
    compare.add_argument(
        "--reward", required=True, action=Sum, metavar="NAME[:key=value,...]", help="what is optimised"
    )
    compare.add_argument(
        "--judge", default="auto", metavar="JUDGE", help="who decides: clock, none, a reward"
    )
    compare.add_argument("--tolerance", type=real(0), default=10.0, help="of the clock judge, in minutes")
    compare.add_argument(
        "--budgets", type=amounts, default="64,256,1024", help="per run, by commas (default: %(default)s)"
    )
    compare.add_argument("--unit", type=one_of(UNITS), default="passes", help=", ".join(UNITS))
    compare.add_argument("--methods", default="all", help="names by commas, or all (default: %(default)s)")
    compare.add_argument("--runs", type=whole(2), default=64, help="independent runs (default: %(default)s)")
    compare.add_argument("--teacher", metavar="EXPORT", help="an export whose velocity drives the particles")
    compare.add_argument(
        "--processes", type=whole(1), default=1, help="worker processes (default: %(default)s)"
    )
    compare.add_argument("--chunk-size", type=whole(1), default=256, help="particles per network call")
    _shared(compare)
    _guidance(compare)
    text = "Make the images of a prompt suite; needs the extra [diffusers]."
    prompts = commands.add_parser("prompts", help=text, description=text)
    prompts_arguments.add_to(prompts)
    prompts.set_defaults(run=_runner("prompts"))
    parser.commands["prompts"] = prompts
    text = "Edit a picture by a reward, such as a question about it; needs the extra [diffusers]."
    edit = commands.add_parser("edit", help=text, description=text)
    edit_arguments.add_to(edit)
    edit.set_defaults(run=_runner("edit"))
    parser.commands["edit"] = edit
    return parser
