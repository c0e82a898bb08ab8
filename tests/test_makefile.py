"""The Makefile says what the programs understand."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def commands(*arguments: str) -> list[list[str]]:
    """What make would run, as words, without running it."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [shlex.split(line) for line in done.stdout.splitlines() if line.startswith(".venv/bin/python")]


def training_commands(*arguments: str) -> list[list[str]]:
    return [words[3:] for words in commands(*arguments) if words[1:3] == ["-m", "train"]]


@pytest.mark.parametrize("target", ["teacher", "map"])
def test_shipped_models_are_trained_and_exported_from_configs_that_exist(target: str) -> None:
    from train.__main__ import parser
    from train.config import load_config

    given = [parser().parse_args(words) for words in training_commands(target)]
    stages = list(zip(given[::2], given[1::2], strict=True))
    configs = [load_config(ROOT / training.config, []) for training, _ in stages]
    assert [Path(config.run_dir) for config in configs] == [export.run_dir for _, export in stages]
    exported = [export.out_dir for _, export in stages]
    assert exported[-1] == Path("fmtt/assets") / f"clock-{target}"
    # A stage after the first goes on from what the one before exported.
    assert [Path(config.student.init) for config in configs[1:]] == exported[:-1]


@pytest.mark.parametrize(("arguments", "fresh"), [((), False), (("FRESH=1",), True), (("FRESH=0",), False)])
def test_the_demo_starts_over_only_when_asked(arguments: tuple[str, ...], fresh: bool) -> None:
    from train.__main__ import parser

    (words,) = training_commands("demo", *arguments)
    parsed = parser().parse_args(words)
    assert parsed.command == "demo" and parsed.out == Path("runs/demo") and parsed.fresh is fresh


def test_every_target_installs_first_and_is_explained() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in set(phony) - {"force"}:
        assert f"make {target} " in listed
        if target not in ("help", "clean", "data", "install"):
            assert f"\n{target}: $(STAMP)" in text, f"{target} does not make sure of .venv"
