"""The README's commands and code work as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from train.__main__ import parser as train_parser

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(start: str) -> list[list[str]]:
    """The shell commands that begin with ``start``, split into words, without their comments."""
    lines = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def test_the_python_example_runs() -> None:
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert tuple(scope["images"].shape) == (16, 3, 32, 32)  # pyright: ignore[reportAttributeAccessIssue]
    assert tuple(scope["clocks"].shape) == (8, 3, 32, 32)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("words", commands("fmtt"), ids=lambda words: words[1])
def test_the_fmtt_commands_parse(words: list[str]) -> None:
    from fmtt.cli.parser import build_parser

    assert build_parser().parse_args(words[1:]).command == words[1]


def test_the_first_fmtt_commands_run(tmp_path: Path) -> None:
    from fmtt.__main__ import main

    for words in commands("fmtt")[:2]:
        out = tmp_path / words[1]
        assert main([*words[1:-1], str(out)]) == 0
        assert (out / "summary.json").is_file()


@pytest.mark.parametrize("words", commands("python -m train"), ids=lambda words: words[3])
def test_the_training_commands_parse(words: list[str]) -> None:
    arguments = train_parser().parse_args(words[3:])
    if arguments.command in ("pretrain", "distill"):
        from train.config import load_config

        load_config(ROOT / arguments.config, arguments.overrides)


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", TEXT, flags=re.MULTILINE))
    for target in {a or b for a, b in targets}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).is_file(), link
