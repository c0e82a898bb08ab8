"""Command lines with mistakes made at random: status 2, one line that names the mistake, nothing written."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from data.__main__ import main as data_main
from fmtt.__main__ import main as fmtt_main
from fmtt.cli.parser import build_parser
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models import checkpoint
from train.__main__ import main as train_main

FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    max_examples=24,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes, and mistakes are small already
)
FMTT = {
    "info": ["EXPORT"],
    "rewards": [],
    "sample": ["EXPORT", "--out", "out"],
    "tilt": ["EXPORT", "--reward", "brightness", "--out", "out"],
    "search": ["EXPORT", "--reward", "brightness", "--out", "out"],
    "evaluate": ["EXPORT", "--out", "out"],
    "certify": ["EXPORT", "--out", "out"],
    "compare": ["EXPORT", "--reward", "brightness", "--out", "out"],
    "prompts": ["EXPORT", "prompts.jsonl", "--method", "sample", "--out", "out"],
    "edit": ["EXPORT", "photo.png", "--prompt", "a", "--reward", "brightness", "--out", "out"],
}
DATA = {
    "write": ["mixture", "--out", "out", "--num-samples", "8"],
    "verify": ["set"],
    "encode": ["--captions", "file.txt", "--model", "EXPORT", "--out", "out"],
}
NO_NUMBER = ["x", "nan", "inf", "-1", "", "1e999", "0x1", "[1]", "--", "1.5.2"]
# fmt: off
REWARDS = [
    "", ":", "+", "zzz", "liner", "clock:time", "clock:time=25:99", "clock:tim=3:47", "clock:time=,",
    "clock:time=3:47,sharpness=x", "clock:time=3:47,sharpness=nan", "brightness +", "+ brightness", "0*",
    "x*brightness", "nan*brightness", "brightness colour", "clock:time=[", "clock:time=3:47;x", "clock:=1",
    "brightness:a=1",
]
# fmt: on
WEIRD: list[Any] = [None, -1, 0, 1.5, "x", "", [], {}, [[]], True, 10**30, float("nan"), {"a": 1}]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: an export, a set of shards, a file."""
    path, before = tmp_path_factory.mktemp("malformed"), os.getcwd()
    os.chdir(path)
    torch.manual_seed(0)
    args = {"patch": 4, "dim": 8, "depth": 1, "heads": 2}
    flow_map = NeuralFlowMap(checkpoint.NETWORKS["dit"]((3, 8, 8), **args), Linear(), (3, 8, 8))
    about: dict[str, Any] = {"trained": {}, "metrics": {}, "card": "# Tiny"}
    checkpoint.save(flow_map, "EXPORT", network="dit", network_args=args, **about)
    assert (
        quiet(data_main, ["write", "mixture", "--out", "set", "--num-samples", "8", "--shard-size", "4"])[0]
        == 0
    )
    Path("file.txt").write_text("words\n")
    Path("prompts.jsonl").write_text('{"tag": "one", "include": [], "prompt": "a cat"}\n')
    yield path
    os.chdir(before)


def quiet(main: Callable[..., int], words: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    return status, out.getvalue(), err.getvalue()


def tree() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in Path().rglob("*")}


def checked(main: Callable[..., int], words: list[str]) -> tuple[int, str]:
    """Exit status and stderr; where it is not 0 it is 2, with one line, and nothing is written."""
    before = tree()
    status, _, err = quiet(main, words)
    if status:
        assert status == 2, (status, words, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), (words, err)
        assert len(err) < 8000, (words, err)
        assert tree() == before, (words, set(tree()) ^ set(before))
    return status, err


def refused(main: Callable[..., int], words: list[str], *names: str) -> None:
    status, err = checked(main, words)
    assert status == 2, f"accepted: {words}"
    named = [name for name in names if name]
    assert not named or any(name in err for name in named), (words, err)


def numbers(parser: argparse.ArgumentParser) -> list[str]:
    """The options that take a number."""
    found = []
    for action in parser._actions:
        kind = getattr(action.type, "__qualname__", "")
        if action.option_strings and kind.split(".")[0] in ("whole", "real", "amounts", "int", "float"):
            found.append(action.option_strings[0])
    return found


PARSERS = build_parser().commands
NUMBERS = [(name, option) for name in FMTT for option in numbers(PARSERS[name])]
OPTIONS = [(name, a.option_strings[0]) for name in FMTT for a in PARSERS[name]._actions if a.option_strings]


def test_there_are_options_to_be_wrong():
    assert len(NUMBERS) > 40 and ("tilt", "--num-steps") in NUMBERS


@FUZZ
@given(st.sampled_from(NUMBERS), st.sampled_from(NO_NUMBER))
def test_fmtt_with_a_number_that_is_none(option, text):
    name, flag = option
    refused(fmtt_main, [name, *FMTT[name], flag, text], flag)


@FUZZ
@given(st.sampled_from(OPTIONS), st.sampled_from(["x", "-", "_"]), st.data())
def test_fmtt_with_an_unknown_option(option, letter, data):
    name, flag = option
    assume(flag.startswith("--"))
    place = data.draw(st.integers(3, len(flag)))
    wrong = flag[:place] + letter + flag[place:]
    assume(wrong not in PARSERS[name]._option_string_actions)
    refused(fmtt_main, [name, *FMTT[name], wrong], wrong)


@FUZZ
@given(st.sampled_from(sorted(FMTT)), st.data())
def test_fmtt_with_a_word_left_out_or_too_many(name, data):
    words = [name, *FMTT[name]]
    if data.draw(st.booleans()):
        refused(fmtt_main, [*words, "another", "word"], "another", "word")
    else:
        place = data.draw(st.integers(0, len(words) - 1))
        left = words[:place] + words[place + 1 :]
        assume(left not in (["rewards"], ["certify", "--out", "out"], ["EXPORT"][:0]) and left)
        refused(fmtt_main, left)


@FUZZ
@given(st.sampled_from(["tilt", "search", "compare"]), st.sampled_from(REWARDS))
def test_fmtt_with_a_reward_that_is_none(name, reward):
    refused(fmtt_main, [name, "EXPORT", "--reward", reward, "--out", "out"], "reward", reward)


@FUZZ
@given(
    st.sampled_from(["sample", "tilt", "search", "prompts"]),
    st.sampled_from(["file.txt", "file.txt/out", "x" * 5000]),
)
def test_fmtt_where_it_cannot_write(name, out):
    refused(fmtt_main, [name, *FMTT[name][:-1], out], "--out", out)


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> str:
    """JSON with one value changed, one key gone or renamed, or the text cut."""
    content = json.loads(json.dumps(content))
    text = json.dumps(content)
    if draw(st.booleans()):
        return text[: draw(st.integers(0, len(text) - 1))]
    place: Any = content
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inside = place[key]
        if not (isinstance(inside, dict | list) and inside and draw(st.booleans())):
            break
        place = inside
    change = draw(st.sampled_from(["value", "gone"]))
    if change == "gone":
        del place[key]
    else:
        place[key] = draw(st.sampled_from(WEIRD))
    return json.dumps(content)


def damaged_copy(folder: str, name: str) -> Path:
    """The file ``name`` of a fresh copy of ``folder``, called damaged."""
    shutil.rmtree("damaged", ignore_errors=True)
    return Path(shutil.copytree(folder, "damaged")) / name


@FUZZ
@given(st.data())
def test_fmtt_with_a_damaged_config(data):
    path = damaged_copy("EXPORT", "config.json")
    path.write_text(data.draw(damaged_json(json.loads(path.read_text()))))
    status, err = checked(fmtt_main, ["info", "damaged"])
    assert status == 0 or "damaged" in err


@FUZZ
@given(st.data())
def test_fmtt_with_damaged_weights(data):
    path = damaged_copy("EXPORT", "model.safetensors")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 400))
    if data.draw(st.booleans()):
        path.write_bytes(content[:place])
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    status, err = checked(fmtt_main, ["info", "damaged"])
    assert status == 0 or "damaged" in err


@FUZZ
@given(st.sampled_from(sorted(DATA)), st.sampled_from(NO_NUMBER), st.data())
def test_data_with_a_number_that_is_none(name, text, data):
    flags = {
        "write": ["--num-samples", "--shard-size", "--seed", "--processes"],
        "encode": [
            "--batch-size",
            "--device",
            "--max-sequence-length",
            "--shard-size",
            "--height",
            "--steps",
            "--shift",
            "--guidance-scale",
            "--part",
            "--parts",
        ],
    }
    flag = data.draw(st.sampled_from(flags.get(name, ["--processes", "--timeout", "--tries"])))
    assume((flag, text) != ("--seed", "-1"))  # any whole number is a seed
    refused(data_main, [name, *DATA[name], flag, text], flag, flag.strip("-"))


@FUZZ
@given(st.sampled_from(sorted(DATA)), st.data())
def test_data_with_wrong_words(name, data):
    words = [name, *DATA[name]]
    extra = data.draw(st.sampled_from(["--fast", "another", "--ou", "-x", "--processes"]))
    place = data.draw(st.integers(0, len(words)))
    if place < len(words):
        refused(data_main, words[:place] + words[place + 1 :])
    else:
        refused(data_main, [*words, extra], extra)


@FUZZ
@given(st.sampled_from(["mixtrue", "", "set", "../x", "clock "]), st.sampled_from(["file.txt", "file.txt/x"]))
def test_data_with_wrong_names(name, out):
    refused(data_main, ["write", name, "--out", "out", "--num-samples", "4"], name)
    refused(data_main, ["write", "mixture", "--out", out, "--num-samples", "4"], out)
    refused(data_main, ["verify", out], out)


@FUZZ
@given(st.data())
def test_data_with_a_damaged_index(data):
    path = damaged_copy("set", "index.json")
    path.write_text(data.draw(damaged_json(json.loads(path.read_text()))))
    status, _, err = quiet(data_main, ["verify", "damaged"])  # which writes what it found
    assert status == 0 or (status == 2 and "damaged" in err and err.count("\n") == 1), err


@FUZZ
@given(st.sampled_from(["", "nowhere", "file.txt", "EXPORT", "set", "x" * 5000]), st.booleans())
def test_train_export_of_what_is_no_run(run_dir, merge):
    words = ["export", run_dir, "exported", *(["--merge"] if merge else [])]
    refused(train_main, words, run_dir, "checkpoint")
