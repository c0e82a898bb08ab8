"""Configurations with mistakes made at random: status 2, one line naming the key or file, nothing written.

Where a mistake could by chance be no mistake, training itself is left out and status 0 is allowed too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from lightning import Trainer

from train.__main__ import main
from train.config import Config

FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    max_examples=16,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes, and mistakes are small already
)
BASE: dict[str, Any] = {
    "seed": 3,
    "max_steps": 6,
    "batch_size": 16,
    "student": {"network": "mlp", "args": {"width": 16, "depth": 1}},
    "objective": {"name": "flow_matching"},
    "data": {"source": "mixture"},
    "evaluate": {"num_samples": 0, "grid_samples": 0},
    "trainer": {"accelerator": "cpu"},
}


def leaves(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, type) of every value of a configuration."""
    hints = get_type_hints(config)
    for one in fields(config):
        if isinstance(hints[one.name], type) and is_dataclass(hints[one.name]):
            yield from leaves(hints[one.name], f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, hints[one.name]


KEYS = dict(leaves(Config))
WRONG = {
    int: ["many", "1.5", "[1]", "{a: 1}", "null", ".inf", ".nan", "''", "1e999", "2020-01-01"],
    float: ["fast", "[1]", "{a: 1}", "null", "''", ".nan", ".inf", "-.inf", "1e999"],
    bool: ["maybe", "[1]", "{a: 1}", "null", "''"],
    str: ["[1]", "{a: 1}", "null"],
    list[float]: ["x", "1", "[x]", "{a: 1}", "[null]", "[[1]]", "[.nan]", "[1, .inf]", "null"],
    dict[str, Any]: ["x", "1", "[1]", "null"],
    dict[str, float]: ["x", "1", "[1]", "null", "{lsd: x}", "{lsd: .nan}", "{lsd: -1}"],
}
MISTYPED = [(key, text) for key, kind in KEYS.items() for text in WRONG.get(kind, [])]
AT_LEAST_1 = (
    "max_steps batch_size trainer.devices trainer.num_nodes trainer.accumulate checkpoint.every_steps "
    "checkpoint.keep log.every_steps evaluate.every_steps data.tries"
)
RANGES = {key: ("0", "-1", "-99999999999999999999") for key in AT_LEAST_1.split()} | {
    "seed": ("-1", "99999999999999999999"),
    "times.diagonal": ("-0.1", "1.1"),
    "times.endpoint": ("-0.1", "1.1"),
    "times.std": ("-1",),
    "times.gap_steps": ("-1",),
    "times.gap_start": ("0", "2"),
    "times.s_density": ("[]", "[-1]", "[0, 0]"),
    "times.distribution": ("unifrom",),
    "times.midpoint": ("center",),
    "optimizer.lr": ("-1",),
    "optimizer.betas": ("[0.9]", "[1, 2]", "[0.9, 0.99, 0.999]"),
    "optimizer.decay_share": ("-1", "2"),
    "optimizer.final": ("1.5",),
    "optimizer.clip": ("-1e-9",),
    "ema.half_lives": ("[]", "[-1]", "[5, 5]"),
    "ema.target_half_life": ("-1",),
    "weighting.ramp_end": ("2",),
    "weighting.pseudo_huber": ("-1",),
    "guidance.scale": ("[1]", "[2, 1]", "[-1, 1]"),
    "guidance.interval": ("[0, 2]",),
    "guidance.dropout": ("1.5",),
    "guidance.method": ("cgf",),
    "data.source": ("mixtrue", "s3://bucket/set", "pipe:cat x", "../nowhere", "file.txt", "damaged"),
    "data.max_bad_fraction": ("-0.1", "1", "2"),
    "data.timeout": ("0", "-1"),
    "data.value_range": ("[1, -1]", "[1]", "[0, 0]"),
    "student.network": ("unet",),
    "student.interpolant": ("liner",),
    "student.prediction": ("noise",),
    "student.args.width": ("0", "-1", "wide", "[3]", "null", "1.5"),
    "student.args.widht": ("3",),
    "student.lora": ("3", "[1]", "{rnk: 3}", "{rank: x}"),
    "derivative": ("jpv",),
    "objective.name": ("flow", "lsd"),
    "objective.terms": ("{lds: 1}", "{flow_matching: 0}"),
    "trainer.precision": ("float8", "64"),
    "trainer.strategy": ("dpp", "fspd"),
    "trainer.accelerator": ("abacus",),
    "run_dir": ("file.txt", "file.txt/run", "x" * 5000, "''", "${nowhere}", "${run_dir}"),
}
OUTSIDE = [(key, text) for key, texts in RANGES.items() for text in texts]
BAD_WORDS = [
    *("max_steps", "=3", "=", "==", " = ", "a..b=3", ".seed=3", "seed.=3", "seed[=3", "ema.half_lives[=3"),
    *("ema.half_lives[0]=x", "seed=[1", "seed={", "seed=${", "seed=${nowhere}", "${x}=3", "seed='", 'seed="'),
    *("seed=!!python/object/apply:os.system [true]", "seed=*x", "seed=&", "seed=@x", "seed=???", "-seed=3"),
    *("--seed=3", "-x", "seed=1 2", "ema.half_lives[9]=3", "\udcff=3", "[a]=3", "{a}=3", "student=dit"),
]
DAMAGE = [
    *(b"broken: [1", b"broken: {a: 1", b"\tseed: 1", b"seed: 'x", b'seed: "x', b"x: *nowhere", b"@x", b"`x"),
    *(
        b"x: !!python/object/apply:os.system [true]",
        b"- item",
        b"a: b: c",
        b"x: \x00",
        b"x: \xff\xfe",
        b"seed: 4",
    ),
    *(b"? [", b"<<: 3", b"x: !unknown 3", b"...\nx: 3", b"---\nseed: 3", b"%TAG", b"1: 2", b"null: 2"),
]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with a file and a damaged set of shards; training is left out."""
    path, before = tmp_path_factory.mktemp("malformed"), os.getcwd()
    (path / "file.txt").write_text("words\n")
    (path / "damaged").mkdir()
    (path / "damaged/index.json").write_text('{"format": 1, "name": ')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda *args, **kwargs: None)
        os.chdir(path)
        yield path
        os.chdir(before)


def run(words: list[str]) -> tuple[int, str]:
    """Exit status and stderr of ``python -m train WORDS``; nothing may be printed or written on failure."""
    before, out, err = sorted(Path().rglob("*")), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    if status:
        assert status == 2 and out.getvalue() == ""
        assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1, err.getvalue()
        assert err.getvalue().endswith("\n") and len(err.getvalue()) < 8000
        assert sorted(Path().rglob("*")) == before
    return status, err.getvalue()


def write(path: Path, content: dict[str, Any] | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return path


def refused(path: Path, words: list[str], *names: str) -> None:
    status, said = run(["pretrain", str(path), "run_dir=run", *words])
    assert status == 2, f"accepted: {words}"
    assert any(name in said for name in names), (names, said)


def nested(key: str, value: Any) -> dict[str, Any]:
    """BASE with one more value."""
    content = yaml.safe_load(yaml.safe_dump(BASE))
    place, (*sections, last) = content, key.split(".")
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return content


@FUZZ
@given(st.sampled_from(MISTYPED), st.booleans())
def test_a_value_of_the_wrong_type(mistake, in_file):
    key, text = mistake
    assume(not (key == "run_dir" and in_file))
    words, content = ([], nested(key, yaml.safe_load(text))) if in_file else ([f"{key}={text}"], BASE)
    # A run_dir after this one is the one that counts.
    refused(write(Path("config.yaml"), content), words, key, key.split(".")[0])


@FUZZ
@given(st.sampled_from(OUTSIDE), st.booleans())
def test_a_value_out_of_range(mistake, in_file):
    key, text = mistake
    assume(not (key == "run_dir" and in_file))
    words, content = ([], nested(key, yaml.safe_load(text))) if in_file else ([f"{key}={text}"], BASE)
    near = {"run_dir": ("run_dir", "cannot write"), "student.args.widht": ("student.args",)}
    near["data.source"] = ("data source", "data.source", text)
    refused(write(Path("config.yaml"), content), words, *near.get(key, (key, key.rpartition(".")[0] or key)))


@FUZZ
@given(st.data())
def test_an_unknown_key(data):
    key = data.draw(st.sampled_from(sorted(KEYS)))
    place = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from(["", "x", "_", "E", "9", "ä"]))
    wrong = key[:place] + letter + key[place + 1 :]
    free = ("student.args.", "objective.terms.", "teacher.")
    assume(wrong not in KEYS and "" not in wrong.split(".") and not wrong.startswith(free))
    words, content = ([], nested(wrong, 1)) if data.draw(st.booleans()) else ([f"{wrong}=1"], BASE)
    refused(write(Path("config.yaml"), content), words, wrong, wrong.split(".")[0])


@FUZZ
@given(st.sampled_from(BAD_WORDS))
def test_a_word_that_is_no_setting(word):
    names = (word, word.partition("=")[0], "the command line", "unrecognized arguments")
    refused(write(Path("config.yaml"), BASE), [word], *names)


@FUZZ
@given(st.sampled_from(DAMAGE), st.integers(0, len(BASE)))
def test_a_damaged_file(damage, line):
    lines = yaml.safe_dump(BASE, default_flow_style=None).encode().splitlines()
    path = write(Path("config.yaml"), b"\n".join([*lines[:line], damage, *lines[line:]]) + b"\n")
    refused(path, [], str(path))


@FUZZ
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@example(b"").via("an empty file has every default but run_dir, and trains")
def test_a_file_of_anything(content):
    status, said = run(["pretrain", str(write(Path("config.yaml"), content))])
    assert status == 2 and "config.yaml" in said


@FUZZ
@given(st.sampled_from(["nowhere.yaml", "damaged", "file.txt/config.yaml", "", "x" * 5000, "file.txt"]))
def test_a_file_that_is_not_there(path):
    status, said = run(["pretrain", path, "run_dir=run"])
    assert status == 2 and (path in said or "config" in said)


FREE = sorted(set(KEYS) - {"run_dir", "log.wandb", "teacher", "data.source", "data.sources"})
TEXTS = st.text(max_size=8) | st.integers(-3, 10**5).map(str) | st.floats().map(str)


@settings(FUZZ, max_examples=24)
@given(st.sampled_from(FREE), TEXTS | st.lists(TEXTS, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"))
def test_any_value_of_any_key(key, text):
    assume("\x00" not in text)
    status, said = run(["pretrain", str(write(Path("config.yaml"), BASE)), "run_dir=run", f"{key}={text}"])
    if status == 0:
        for path in sorted(Path("run").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        Path("run").rmdir()
