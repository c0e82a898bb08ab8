"""A wrong index is refused by file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.index import INDEX_NAME, read_index
from data.write_shards import write_procedural
from fmtt.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_procedural("mixture-labelled", tmp_path, 6, shard_size=3)
    return tmp_path / INDEX_NAME


def test_a_missing_folder_or_index_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_index(tmp_path / "nowhere" / INDEX_NAME)
    with pytest.raises(UserError, match=r"index.json is missing; run `python -m data write`"):
        read_index(tmp_path / INDEX_NAME)
    (tmp_path / INDEX_NAME).mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_index(tmp_path / INDEX_NAME)


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", '{"format": 1'])
def test_what_is_not_json_is_refused(path: Path, text: str):
    path.write_text(text)
    with pytest.raises(UserError, match=r"index.json is not JSON"):
        read_index(path)


def test_bytes_that_are_not_text_are_refused(path: Path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"index.json is not JSON"):
        read_index(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format is 2, this version reads 1"),
        ("format", None, "format is None"),
        ("name", 3, "name is missing or wrong"),
        ("num_samples", 7, "not the sum"),
        ("num_samples", True, "num_samples is missing or wrong"),
        ("shard_size", 0, "shard_size is missing or wrong"),
        ("data_shape", [3, "x"], "data_shape"),
        ("data_shape", [0], "data_shape"),
        ("dtype", "object", "dtype 'object'"),
        ("cond", [], "cond is missing or wrong"),
        ("cond", {"label": 3}, "cond holds 3"),
        ("shards", {}, "shards is missing or wrong"),
        ("shards", [3], "shards holds 3"),
        ("shards", [], "not the sum"),
    ],
)
def test_a_wrong_value_is_named_by_key(path: Path, key: str, value: object, message: str):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError) as caught:
        read_index(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("name", "../x.tar"), ("name", None), ("count", 0), ("bytes", "5"), ("sha256", 1)]
)
def test_a_wrong_shard_entry_is_named_by_key(path: Path, key: str, value: object):
    content = json.loads(path.read_text())
    content["shards"][1][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=key):
        read_index(path)


def test_an_index_that_is_a_list_is_refused(path: Path):
    path.write_text("[]")
    with pytest.raises(UserError, match="an object was expected"):
        read_index(path)
