"""The steering commands hand every option to the function of the same name."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fmtt
from fmtt.__main__ import main
from fmtt.cli.parser import build_parser

ALIASES = {"init": "x_init", "init_is": "x_init_is", "teacher": "velocity", "label": "cond"}
ALIASES |= dict.fromkeys(("prompt", "guidance_scale", "negative_prompt"), "cond")
OF_THE_COMMAND = {
    "command",
    "run",
    "export",
    "reward",
    "out",
    "seed",
    "judge",
    "tolerance",
    "device",
    "height",
    "width",
}


@pytest.mark.parametrize(("command", "function"), [("tilt", fmtt.tilt), ("search", fmtt.search)])
def test_options_are_named_as_arguments_with_the_same_defaults(command: str, function: object) -> None:
    args = vars(build_parser().parse_args([command, "e", "--reward", "r", "--out", "o"]))
    known = inspect.signature(function).parameters  # type: ignore[arg-type]
    # The shell has defaults of its own for these.
    own = {"num_particles", "num_populations", "keep", "rounds", "init_is", "weights"}
    for name, value in args.items():
        if name in OF_THE_COMMAND:
            continue
        parameter = known[str(ALIASES.get(name, name))]
        assert name in own or value == parameter.default, name


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clocks") / "samples.safetensors"
    save_file({"samples": torch.zeros(1, 3, 32, 32), "rewards": torch.zeros(1)}, path)
    return path


def run(*args: str | Path) -> int:
    return main([*map(str, args)])


TILT = """--schedule adaptive:0.9 --times shifted:2 --resample ssp --resample-share 0.6 --resample-at 0.7
--final-resample --chi 0.01 --weights path --lookahead-map clock-map --lookahead-steps 2 --checkpoint
--gradient zeroth --num-probes 2 --probe-scale 0.2 --t-start 0.4 --step-size clipped --guidance 2"""
SEARCH = "--selection tempered --temperature 2 --keep 2 --rounds 2 --schedule ramp:0.1"
STEER = ("clock-map", "--reward", "clock:time=3:47", "--num-particles", "3", "--num-steps", "3")


@pytest.mark.slow
def test_every_option_runs(clocks: Path, tmp_path: Path) -> None:
    assert run("tilt", *STEER, *TILT.split(), "--init", clocks, "--out", tmp_path) == 0
    assert run("search", *STEER, *SEARCH.split(), "--out", tmp_path) == 0


@pytest.mark.parametrize(("start", "rule"), [((), "exact"), (("--t-start", "0.5"), "path")])
def test_weights_are_those_that_the_start_allows(
    start: tuple[str, ...], rule: str, clocks: Path, tmp_path: Path
) -> None:
    given = ("--init", clocks) if start else ()
    assert run("tilt", *STEER, *start, *given, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["arguments"]["weights"] == rule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--init nowhere", "--init nowhere"),
        ("--schedule rampp", "schedule"),
        ("--resample sometimes", "is not one of systematic"),
        ("--resample-at 1.0", "resample_at"),
        ("--final-resample --resample none", "final_resample contradicts"),
        ("--gradient zeroth", "weights='path'"),
        ("--t-start 0.5", "needs --init"),
        (f"--seed {2**64}", "must be at most"),
    ],
)
def test_mistakes_are_one_line(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tilt", *STEER, *options.split(), "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
