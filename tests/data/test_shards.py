"""Reading: what was written comes back, resume is exact, and nothing is skipped silently."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import data.shards as module
from data.index import INDEX_NAME, read_index
from data.procedural import clock_batch, mixture_batch
from data.shards import ShardBatches
from data.write_shards import write_procedural
from fmtt.errors import UserError

N, SHARD = 60, 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_procedural("mixture-labelled", tmp_path, N, shard_size=SHARD)
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read, in order."""
    names: list[str] = []
    original = module.read_shard

    def recorded(store, shard, header, **options):
        names.append(shard.name)
        return original(store, shard, header, **options)

    monkeypatch.setattr(module, "read_shard", recorded)
    return names


def rewrite(folder: Path, number: int, change, *, fix_index: bool = True) -> str:
    """Replace member contents of a shard by ``change(name, bytes)`` (None drops it); mend its index entry."""
    index = json.loads((folder / INDEX_NAME).read_text())
    entry = index["shards"][number]
    path = folder / entry["name"]
    stream = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            content = change(member.name, file.read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    path.write_bytes(stream.getvalue())
    if fix_index:
        entry |= {"bytes": len(stream.getvalue()), "sha256": hashlib.sha256(stream.getvalue()).hexdigest()}
        (folder / INDEX_NAME).write_text(json.dumps(index))
    return entry["name"]


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def epoch_rows(batches: ShardBatches) -> torch.Tensor:
    return torch.cat([batches.batch(k).x for k in range(batches.batches_per_epoch)])


def test_an_epoch_gives_every_sample_back_with_its_label(folder: Path):
    batches = ShardBatches(folder, 6)
    x, (label,) = mixture_batch(torch.arange(N), 0)
    got = [batches.batch(k) for k in range(batches.batches_per_epoch)]
    rows = torch.cat([batch.x for batch in got])
    labels = torch.cat([batch.cond["label"] for batch in got if batch.cond is not None])
    assert rows.dtype == torch.float32 and labels.dtype == torch.int64
    match = (rows[:, None] == x[None]).all(-1)
    assert torch.equal(match.sum(0), torch.ones(N, dtype=torch.int64))
    assert torch.equal(labels, label[match.long().argmax(1)])
    assert batches.problems == [] and batches.data_shape == (2,)


def test_images_come_back_to_half_precision(tmp_path: Path):
    write_procedural("clock", tmp_path, 12, seed=2, shard_size=5)
    rows = epoch_rows(ShardBatches(tmp_path, 4))
    images = clock_batch(torch.arange(12), 2)[0].half().float()
    assert torch.equal(rows.sum((1, 2, 3)).sort().values, images.sum((1, 2, 3)).sort().values)


@pytest.mark.parametrize("window", [12, 30, 1000])
def test_resuming_at_any_step_gives_what_an_uninterrupted_run_gives(folder: Path, window: int):
    steps = 35  # three and a half epochs
    whole = [ShardBatches(folder, 6, seed=9, window=window)]
    expected = [whole[0].batch(k).x for k in range(steps)]
    for start in random.Random(window).sample(range(steps), 6):
        resumed = ShardBatches(folder, 6, seed=9, window=window, cache_bytes=0)
        for k in range(start, steps):
            assert torch.equal(resumed.batch(k).x, expected[k])


def test_shards_before_the_resume_point_are_not_read(folder: Path, reads: list[str]):
    batches = ShardBatches(folder, 10, window=20)
    for k in range(4, batches.batches_per_epoch):
        batches.batch(k)
    assert len(reads) == len(set(reads)) == 2


def test_each_shard_is_read_once_where_all_fit_and_again_where_not(folder: Path, reads: list[str]):
    batches = ShardBatches(folder, 10, window=20)
    for k in range(3 * batches.batches_per_epoch):
        batches.batch(k)
    assert len(reads) == N // SHARD
    reads.clear()
    tight = ShardBatches(folder, 10, window=20, cache_bytes=1)
    for k in range(2 * tight.batches_per_epoch):
        tight.batch(k)
        assert len(tight._cache) <= 4  # a window's own shards, and those of the one before
    assert len(reads) > N // SHARD


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_no_sample_and_read_about_their_share(folder: Path, reads: list[str], world_size: int):
    ranks = [ShardBatches(folder, 5, rank=r, world_size=world_size) for r in range(world_size)]
    rows = torch.cat([epoch_rows(batches) for batches in ranks])
    assert len(torch.unique(rows, dim=0)) == len(rows) == N
    assert len(reads) <= N // SHARD + world_size


def test_a_missing_shard_is_an_error_or_is_replaced_if_so_much_loss_is_allowed(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    name = read_index(folder / INDEX_NAME).shards[2].name
    (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        epoch_rows(ShardBatches(folder, 6))
    message = str(caught.value)
    assert "10 of 60 samples cannot be read" in message
    assert f"the worst shard is {name} with 10 samples, {name}: is missing" in message
    assert "max_bad_fraction" in message and "\n" not in message
    tolerant = ShardBatches(folder, 6, max_bad_fraction=0.2)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert epoch_rows(tolerant).shape == (N, 2)
    assert [(p.where, p.count) for p in tolerant.problems] == [(name, 10)]
    assert sum(name in record.message for record in caplog.records) == 1
    assert torch.equal(epoch_rows(tolerant), epoch_rows(ShardBatches(folder, 6, max_bad_fraction=0.2)))


def test_the_worst_shard_is_named_and_not_the_first(folder: Path):
    for number, lost in ((1, 1), (2, 3), (4, 2)):
        drop = tuple(f"{number}{row}.x.npy" for row in range(lost))
        rewrite(folder, number, lambda n, old, drop=drop: None if n.endswith(drop) else old)
    name = read_index(folder / INDEX_NAME).shards[2].name
    with pytest.raises(UserError, match=f"6 of 60 samples .* the worst shard is {name} with 3 samples"):
        ShardBatches(folder, 60, max_bad_fraction=0.09).batch(0)


def test_the_allowed_fraction_is_of_the_whole_set_and_every_rank_notices_more(folder: Path):
    shards = read_index(folder / INDEX_NAME).shards
    (folder / shards[2].name).unlink()
    for rank in range(3):  # a shard of six is half of a rank's share
        batches = ShardBatches(folder, 6, rank=rank, world_size=3, max_bad_fraction=0.2)
        assert len(torch.cat([batches.batch(k).x for k in range(40)])) == 240
    (folder / shards[4].name).unlink()
    for rank in range(3):
        batches = ShardBatches(folder, 6, rank=rank, world_size=3, max_bad_fraction=0.2)
        with pytest.raises(UserError, match="20 of 60 samples"):
            for k in range(40):
                batches.batch(k)


def test_what_is_replaced_by_what_does_not_depend_on_what_was_read_before(folder: Path):
    shards = read_index(folder / INDEX_NAME).shards
    (folder / shards[2].name).unlink()
    rewrite(folder, 4, lambda n, old: None if n == "000000041.x.npy" else old)
    options: dict = {"max_bad_fraction": 0.3, "window": 12, "rank": 1, "world_size": 2}
    whole = ShardBatches(folder, 6, **options)
    expected = [whole.batch(k).x for k in range(15)]
    for start in (14, 3, 9):
        resumed = ShardBatches(folder, 6, cache_bytes=0, **options)
        assert all(torch.equal(resumed.batch(k).x, expected[k]) for k in range(start, 15))


def test_a_truncated_shard_is_read_up_to_the_cut(folder: Path):
    shard = read_index(folder / INDEX_NAME).shards[1]
    content = (folder / shard.name).read_bytes()
    whole = epoch_rows(ShardBatches(folder, 6))
    for size in (len(content) // 2, len(content) // 2 + 700, 512, 100, 0):
        (folder / shard.name).write_bytes(content[:size])
        batches = ShardBatches(folder, 6, max_bad_fraction=0.2)
        rows = epoch_rows(batches)
        lost = sum(problem.count for problem in batches.problems)
        assert 1 <= lost <= 10 and rows.shape == whole.shape
        assert f"truncated, has {size} bytes where the index says {shard.bytes}" in str(batches.problems[0])
        assert len(torch.unique(rows, dim=0)) == N - lost
        assert {tuple(r) for r in rows.tolist()} <= {tuple(r) for r in whole.tolist()}
        with pytest.raises(UserError, match="truncated"):
            epoch_rows(ShardBatches(folder, 6, max_bad_fraction=0.0))


def test_flipped_bytes_are_caught_by_the_checksum(folder: Path):
    shard = read_index(folder / INDEX_NAME).shards[0]
    content = bytearray((folder / shard.name).read_bytes())
    content[-3000] ^= 1
    (folder / shard.name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{shard.name}: its SHA-256 differs from the index"):
        epoch_rows(ShardBatches(folder, 6))
    (folder / shard.name).write_bytes(bytes(content) + b"more")
    with pytest.raises(UserError, match=f"{shard.name}: has {len(content) + 4} bytes where the index says"):
        epoch_rows(ShardBatches(folder, 6))


def test_a_shard_with_a_wrong_checksum_is_never_used_however_often_it_comes_up(folder: Path):
    shard = read_index(folder / INDEX_NAME).shards[0]
    content = bytearray((folder / shard.name).read_bytes())
    content[-3000] ^= 1
    (folder / shard.name).write_bytes(bytes(content))
    batches = ShardBatches(folder, 6, max_bad_fraction=0.2, cache_bytes=0, window=12)
    lost = {tuple(row) for row in mixture_batch(torch.arange(10), 0)[0].tolist()}
    for step in range(3 * batches.batches_per_epoch):
        assert lost.isdisjoint(tuple(row) for row in batches.batch(step).x.tolist())


def test_what_is_not_a_tar_is_reported(folder: Path):
    shard = read_index(folder / INDEX_NAME).shards[0]
    (folder / shard.name).write_bytes(b"not a tar" * (shard.bytes // 9) + b"x" * (shard.bytes % 9))
    with pytest.raises(UserError, match=r"0 samples where the index says 10 \["):
        epoch_rows(ShardBatches(folder, 6, verify=False))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"garbage", "x.npy is not a readable array"),
        (b"", "x.npy is not a readable array"),
        (None, "x.npy is missing"),
        (npy(np.zeros(3, np.float32)), r"x.npy is float32 \(3,\) where the index says float32 \(2,\)"),
        (npy(np.zeros(2, np.float64)), r"x.npy is float64 \(2,\)"),
        (npy(np.array([1, np.nan], np.float32)), "holds numbers that are not finite"),
        (npy(np.array([1, None], object), allow_pickle=True), "x.npy is not a readable array"),
        (pickle.dumps([1, 2]), "x.npy is not a readable array"),
    ],
)
def test_a_corrupt_sample_is_skipped_by_name_or_refused(folder: Path, content: bytes | None, reason: str):
    name = rewrite(folder, 3, lambda n, old: content if n == "000000034.x.npy" else old)
    batches = ShardBatches(folder, 6, max_bad_fraction=0.05)
    rows = epoch_rows(batches)
    assert len(torch.unique(rows, dim=0)) == N - 1
    (problem,) = batches.problems
    assert problem.where == f"{name}, sample 000000034" and problem.count == 1
    with pytest.raises(UserError, match=reason):
        epoch_rows(ShardBatches(folder, 6))


def test_a_sample_without_its_label_is_a_corrupt_one(folder: Path):
    rewrite(folder, 3, lambda n, old: None if n == "000000034.cond.label.npy" else old)
    with pytest.raises(UserError, match=r"sample 000000034: cond.label.npy is missing \(1 sample\)"):
        epoch_rows(ShardBatches(folder, 6))


def test_too_few_and_too_many_samples_are_reported(folder: Path):
    name = rewrite(folder, 3, lambda n, old: None if n.startswith("000000034") else old)
    with pytest.raises(UserError, match=f"{name}: holds 9 samples where the index says 10"):
        epoch_rows(ShardBatches(folder, 6))


def test_a_set_that_is_wholly_unreadable_ends_in_an_error(folder: Path):
    for shard in folder.glob("*.tar"):
        shard.unlink()
    batches = ShardBatches(folder, 6, max_bad_fraction=0.99)
    with pytest.raises(UserError, match="is missing"):
        epoch_rows(batches)
    with pytest.raises(UserError, match="is missing"):  # and again, however often it is asked
        epoch_rows(batches)


def test_wrong_arguments_are_refused(folder: Path):
    with pytest.raises(UserError, match="max_bad_fraction must lie in"):
        ShardBatches(folder, 6, max_bad_fraction=1.0)
    with pytest.raises(UserError, match="lower batch_size"):
        ShardBatches(folder, 61)
