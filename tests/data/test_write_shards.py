"""Writing: whole shards only, the same bytes every time, continued where it stopped."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

import data.write_shards as module
from data.index import INDEX_NAME, read_index
from data.procedural import clock_batch
from data.write_set import PROGRESS_NAME
from data.write_shards import write_procedural
from fmtt.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_webdataset_itself_reads_the_shards_back(tmp_path: Path):
    index = write_procedural("clock", tmp_path, 10, seed=3, shard_size=4).index
    assert [shard.count for shard in index.shards] == [4, 4, 2]
    images, latents = clock_batch(torch.arange(10), 3)
    urls = [str(tmp_path / shard.name) for shard in index.shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False))  # type: ignore[attr-defined]
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(10)]
    for i, sample in enumerate(samples):
        x = np.load(io.BytesIO(sample["x.npy"]), allow_pickle=False)
        assert x.dtype == np.float16
        assert np.array_equal(x, images[i].numpy().astype(np.float16))
        meta = json.loads(sample["json"])
        assert meta["index"] == i
        assert meta["time"] == latents.time[i].item()
        assert meta["shades"] == latents.shades[i].tolist()


def test_half_precision_moves_no_pixel_by_more_than_a_thousandth():
    images, _ = clock_batch(torch.arange(50), 0)
    assert (images.half().float() - images).abs().max() < 2.5e-4


def test_index_says_what_is_there_and_bytes_are_reproducible(tmp_path: Path):
    first = write_procedural("mixture-labelled", tmp_path / "a", 20, seed=1, shard_size=8).index
    write_procedural("mixture-labelled", tmp_path / "b", 20, seed=1, shard_size=8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert read_index(tmp_path / "a" / INDEX_NAME) == first
    raw = json.loads((tmp_path / "a" / INDEX_NAME).read_text())
    assert (raw["format"], raw["name"], raw["seed"], raw["data_shape"]) == (1, "mixture-labelled", 1, [2])
    assert raw["cond"] == {"label": {"shape": [], "dtype": "int64"}}
    for shard in first.shards:
        with tarfile.open(tmp_path / "a" / shard.name) as tar:
            assert {member.mtime for member in tar} == {0}


@pytest.mark.parametrize("stop_at", [0, 5, 9])
def test_an_interrupted_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int):
    write_procedural("clock", tmp_path / "whole", 12, shard_size=4)
    original = module.ComputedSamples.__call__

    def interrupted(self, start, stop):
        if stop > stop_at:
            raise KeyboardInterrupt
        return original(self, start, stop)

    out = tmp_path / "out"
    monkeypatch.setattr(module.ComputedSamples, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_procedural("clock", out, 12, shard_size=4)
    assert not (out / INDEX_NAME).exists()
    assert len(list(out.glob("*.tar"))) == stop_at // 4
    (out / ".clock-000002.tar.killed.tmp").write_bytes(b"left by a killed process")
    monkeypatch.setattr(module.ComputedSamples, "__call__", original)
    assert write_procedural("clock", out, 12, shard_size=4).kept == stop_at // 4
    assert contents(out) == contents(tmp_path / "whole")


def test_finished_shards_are_kept_and_damaged_ones_are_replaced(tmp_path: Path):
    write_procedural("clock", tmp_path, 12, shard_size=4)
    before = contents(tmp_path)
    assert write_procedural("clock", tmp_path, 12, shard_size=4).kept == 3
    (tmp_path / "clock-000000.tar").unlink()
    with open(tmp_path / "clock-000001.tar", "r+b") as file:
        file.truncate(1000)
    assert write_procedural("clock", tmp_path, 12, shard_size=4).kept == 1
    assert contents(tmp_path) == before


def test_a_folder_with_another_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_procedural("clock", tmp_path / "a", 4, shard_size=4)
    before = contents(tmp_path / "a")
    for name, n, seed in (("mixture", 4, 0), ("clock", 5, 0), ("clock", 4, 1)):
        with pytest.raises(UserError, match=r"holds clock \(seed 0, 4 samples, 4 a shard\), not"):
            write_procedural(name, tmp_path / "a", n, seed=seed, shard_size=4)
    assert contents(tmp_path / "a") == before
    (tmp_path / "a" / INDEX_NAME).unlink()
    with pytest.raises(UserError, match="tar files without index.json"):
        write_procedural("clock", tmp_path / "a", 4, shard_size=4)


def test_a_folder_where_another_write_was_interrupted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module.ComputedSamples, "__call__", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_procedural("clock", tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_NAME]
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds clock"):
        write_procedural("mixture", tmp_path, 4)
    write_procedural("clock", tmp_path, 4)
    assert not (tmp_path / PROGRESS_NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "clocks", "num_samples": 4}, "did you mean 'clock'"),
        ({"name": "clock", "num_samples": 0}, "num-samples must be at least 1"),
        ({"name": "clock", "num_samples": 4, "shard_size": 0}, "shard-size must be at least 1"),
    ],
)
def test_wrong_arguments_leave_no_trace(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        write_procedural(out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_procedural("clock", tmp_path / "out", 4)
