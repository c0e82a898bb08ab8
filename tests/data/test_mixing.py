"""Mixtures: the stated shares, each source in its own order, any place without those before it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data.mixing import BLOCK, MixedBatches, Source, quotas
from data.module import open_batches
from data.procedural_batches import ProceduralBatches
from data.write_shards import write_procedural
from fmtt.errors import UserError


def mixed(weights: list[float], batch: int = 50, rank: int = 0, seed: int = 5) -> MixedBatches:
    parts = [ProceduralBatches("mixture", 1, seed=number, rank=rank, world_size=2) for number in range(3)]
    return MixedBatches(parts[: len(weights)], weights, batch, seed=seed, rank=rank)


def test_places_are_shared_out_by_largest_remainder():
    assert quotas([0.7, 0.3]).tolist() == [7000, 3000]
    assert quotas([1, 1, 1]).tolist() == [3334, 3333, 3333]
    assert quotas([3, 2, 2]).sum() == BLOCK


def test_every_block_holds_the_stated_shares_and_each_source_runs_in_order():
    mixture = mixed([6, 3, 1])
    owners, own = mixture.places(np.arange(3 * BLOCK)).T
    for block in owners.reshape(3, BLOCK):
        assert np.bincount(block).tolist() == [6000, 3000, 1000]
    for source, count in enumerate((18000, 9000, 3000)):
        assert np.array_equal(own[owners == source], np.arange(count))


def test_batches_mix_the_sources_evenly_and_ranks_differ():
    mixture = mixed([1, 1], batch=100)
    share = np.array(
        [(mixture.places(np.arange(k * 100, k * 100 + 100))[:, 0] == 0).mean() for k in range(80)]
    )
    assert abs(share.mean() - 0.5) < 4 * 0.05 / 80**0.5 and 0.03 < share.std() < 0.07
    other = mixed([1, 1], batch=100, rank=1)
    assert not np.array_equal(mixture.places(np.arange(100)), other.places(np.arange(100)))


def test_resuming_at_any_step_gives_what_an_uninterrupted_run_gives():
    whole = mixed([0.6, 0.3, 0.1])
    expected = [whole.batch(step).x for step in range(0, 420, 7)]  # over two ends of blocks
    for number in random.Random(0).sample(range(len(expected)), 8):
        assert torch.equal(mixed([0.6, 0.3, 0.1]).batch(7 * number).x, expected[number])


def test_folders_and_computed_sets_mix_with_their_labels(tmp_path: Path):
    write_procedural("mixture-labelled", tmp_path / "a", 30, seed=1, shard_size=8)
    sources = [Source(str(tmp_path / "a"), 0.5), Source("mixture-labelled", 0.5)]
    batches = open_batches(sources, 20, seed=2)
    folder, computed = (open_batches(one.source, 1, seed=2) for one in sources)
    assert batches.data_shape == (2,) and batches.batches_per_epoch is None
    assert isinstance(batches, MixedBatches)
    for step in (0, 5, 3):
        got = batches.batch(step)
        assert got.cond is not None and got.cond["label"].shape == (20,)
        for row, (owner, place) in enumerate(batches.places(np.arange(20 * step, 20 * step + 20)).tolist()):
            one = (folder, computed)[owner].batch(place)
            assert torch.equal(got.x[row], one.x[0])
            assert one.cond is not None and torch.equal(got.cond["label"][row], one.cond["label"][0])


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(UserError, match=r"data_shape differs, \(2,\) and \(3, 32, 32\)"):
        open_batches([Source("mixture"), Source("clock")], 4)
    with pytest.raises(UserError, match="cond differs"):
        open_batches([Source("mixture"), Source("mixture-labelled")], 4)
    with pytest.raises(UserError, match="data.sources is empty"):
        open_batches([], 4)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be greater than 0 and finite"):
            quotas([1.0, weight])
    with pytest.raises(UserError, match="less than 1 in 10000"):
        quotas([1.0, 1e-6])
