"""Prompt suites: files of prompts to be made into images, in the folders that their own evaluators read.

GenEval       JSON lines with ``prompt`` and what the evaluator looks for; images go to
              00000/samples/0000.png beside 00000/metadata.jsonl, numbered by line.
UniGenBench   JSON lines or comma-separated values with ``index``, ``prompt`` (or ``prompt_en``) and the
              points that are tested; images go to INDEX_0.png and so on, four of each prompt.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmtt.errors import UserError
from fmtt.files import atomic_write

LAYOUTS = ("geneval", "unigenbench")
PROMPT_KEYS = ("prompt", "prompt_en", "prompt_zh")


class Item(NamedTuple):
    """One prompt of a suite.

    Attributes:
        index: the number that the suite knows it by; of GenEval its line, from 0.
        row: everything that the file says of it.
    """

    index: int
    prompt: str
    row: dict[str, Any]


class Suite(NamedTuple):
    """The prompts of a file, and the layout of their images."""

    layout: str
    items: tuple[Item, ...]


def read(path: Path, layout: str = "auto") -> Suite:
    """The prompts of ``path``, a file of JSON lines or of comma-separated values with a heading.

    Args:
        layout: "geneval", "unigenbench", or "auto": the latter where rows have an ``index``.

    Raises:
        UserError: naming the line, when the file cannot be read or a row has no prompt.
    """
    rows = _csv(path) if path.suffix == ".csv" else _json_lines(path)
    if not rows:
        raise UserError(f"{path} holds no prompt")
    if layout == "auto":
        layout = "unigenbench" if "index" in rows[0][1] else "geneval"
    items = [_item(path, number, row, k, layout) for k, (number, row) in enumerate(rows)]
    seen: set[int] = set()
    for item in items:
        if item.index in seen:
            raise UserError(f"{path} has index {item.index} twice; every prompt needs its own")
        seen.add(item.index)
    return Suite(layout, tuple(items))


def images(suite: Suite, folder: Path, item: Item, count: int) -> list[Path]:
    """Where ``count`` images of a prompt belong under ``folder``."""
    if suite.layout == "geneval":
        return [_geneval(folder, item) / "samples" / f"{k:04d}.png" for k in range(count)]
    return [folder / f"{item.index}_{k}.png" for k in range(count)]


def write_metadata(suite: Suite, folder: Path, item: Item) -> None:
    """What the evaluator needs beside the images of a prompt: for GenEval its line of the file."""
    if suite.layout == "geneval":
        with atomic_write(_geneval(folder, item) / "metadata.jsonl") as temporary:
            temporary.write_text(json.dumps(item.row), encoding="utf-8")


def part(suite: Suite, number: int, parts: int) -> Suite:
    """Every ``parts``-th prompt from ``number`` on, counted from 0: one job's share of the suite."""
    return suite._replace(items=suite.items[number::parts])


def _geneval(folder: Path, item: Item) -> Path:
    return folder / f"{item.index:05d}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the prompts of {path}: {reason}") from error


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(number of the line, row)."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object")
        rows.append((number, row))
    return rows


def _csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    return [(reader.line_num, row) for row in reader]


def _item(path: Path, number: int, row: dict[str, Any], place: int, layout: str) -> Item:
    prompt = next((row[key] for key in PROMPT_KEYS if key in row), None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{path}, line {number} has no prompt; keys: {_keys(row)}")
    if layout == "geneval":
        return Item(place, prompt, row)
    try:
        return Item(int(row["index"]), prompt, row)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}, line {number} has no whole number as index, which names unigenbench's images"
        ) from error


def _keys(row: dict[str, Any]) -> str:
    names: Sequence[str] = [str(name) for name in row]
    return ", ".join(names) or "none"
