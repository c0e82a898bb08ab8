"""Which samples each rank sees: every one once an epoch, the same number of batches, resumable anywhere."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data.order import Order
from fmtt.errors import UserError

COUNTS = (50, 50, 50, 50, 50, 50, 17)


def numbered(picks: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """Samples (n, 2) as numbers from 0 to the size of the set."""
    return (np.concatenate([[0], np.cumsum(counts)])[picks[:, 0]] + picks[:, 1]).astype(np.int64)


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    """The samples of a rank's stretch in an epoch."""
    first, last = order._start(epoch), order._start(epoch + 1)
    return numbered(order.samples(np.arange(first, last)), order.counts)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("window", [1, 40, 10_000])
def test_every_sample_is_read_once_an_epoch_whatever_the_number_of_ranks(world_size: int, window: int):
    orders = [Order(COUNTS, 8, 4, rank, world_size, window) for rank in range(world_size)]
    for epoch in range(4):
        seen = np.concatenate([epoch_of(order, epoch) for order in orders])
        assert np.array_equal(np.sort(seen), np.arange(sum(COUNTS)))


def test_64_ranks_read_every_sample_once_an_epoch_and_resume_at_any_step():
    counts, ranks, batch = (499,) * 64 + (211,), 64, 24
    total = sum(counts)
    orders = [Order(counts, batch, 3, rank, ranks, 512) for rank in range(ranks)]
    sequences = []
    for order in orders:
        steps = [order.batch(step) for step in range(-(-3 * total // (ranks * batch)))]
        assert all(one.shape == (batch, 2) for one in steps)
        sequences.append(np.concatenate([numbered(one, counts) for one in steps]))
    for epoch in range(3):
        stretches = [
            sequence[o._start(epoch) : o._start(epoch + 1)]
            for o, sequence in zip(orders, sequences, strict=True)
        ]
        assert np.array_equal(np.bincount(np.concatenate(stretches), minlength=total), np.ones(total))
        lengths = {len(stretch) for stretch in stretches}
        assert max(lengths) - min(lengths) <= 1
    choose = random.Random(0)
    for rank in choose.sample(range(ranks), 4):
        resumed = Order(counts, batch, 3, rank, ranks, 512)
        for step in sorted(choose.sample(range(len(sequences[0]) // batch), 12), reverse=True):
            expected = sequences[rank][step * batch : (step + 1) * batch]
            assert np.array_equal(numbered(resumed.batch(step), counts), expected)


def test_ranks_never_differ_by_more_than_a_sample_in_how_far_they_are():
    orders = [Order(COUNTS, 8, 4, rank, 5) for rank in range(5)]
    for epoch in range(40):
        starts = [order._start(epoch) for order in orders]
        assert max(starts) - min(starts) <= 1 and sum(starts) == epoch * sum(COUNTS)
        for order, start in zip(orders, starts, strict=True):
            assert order._epoch(start) == epoch and order._epoch(start - 1) == epoch - 1


def test_the_sequence_of_samples_does_not_depend_on_the_batch_size():
    small, large = Order(COUNTS, 8, 4, 1, 2, 40), Order(COUNTS, 24, 4, 1, 2, 40)
    for step in (0, 3, 7, 30):
        parts = [small.batch(3 * step + k) for k in range(3)]
        assert np.array_equal(large.batch(step), np.concatenate(parts))


def test_the_order_is_a_pure_function_of_its_arguments():
    order = Order(COUNTS, 8, 4, 1, 2, 40)
    later = Order(COUNTS, 8, 4, 1, 2, 40)
    for step in (70, 3, 0, 41):
        assert np.array_equal(order.batch(step), later.batch(step))
    for other in (Order(COUNTS, 8, 5, 1, 2, 40), Order(COUNTS, 8, 4, 0, 2, 40)):
        assert not np.array_equal(order.batch(3), other.batch(3))


def test_epochs_are_in_different_orders():
    order = Order(COUNTS, 50, 0, window=10_000)
    assert not np.array_equal(epoch_of(order, 0), epoch_of(order, 1))


def test_shuffling_mixes_shards_within_the_window():
    order = Order((100,) * 20, 50, 0, window=1000)
    assert len(np.unique(order.batch(0)[:, 0])) > 5
    assert set(np.unique(order.batch(0)[:, 0])) <= set(order.shards(0))
    assert len(order.shards(0)) <= 11


def test_later_windows_do_not_touch_the_shards_before_them():
    order = Order((100,) * 20, 50, 0, window=400)
    assert set(order.shards(0)).isdisjoint(order.shards(400))
    assert order.shards(0) == order.shards(399)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((10,), 11, 0), "10 samples, one batch on every rank takes 11"),
        (((10,), 6, 0, 0, 2), "takes 12"),
        (((10,), 0, 0), "batch_size must be at least 1"),
        (((10,), 1, 0, 2, 2), "rank must lie in"),
        (((10,), 1, 0, 0, 1, 0), "window must be at least 1"),
    ],
)
def test_wrong_sizes_are_refused(arguments: tuple, message: str):
    with pytest.raises(UserError, match=message):
        Order(*arguments)
