"""Which samples each rank sees: every one once, the same number of batches, resumable anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from data.order import Order
from fmtt.errors import UserError

COUNTS = (50, 50, 50, 50, 50, 50, 17)


def names(picks: np.ndarray) -> set[tuple[int, int]]:
    return {(int(shard), int(row)) for shard, row in picks}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 40, 10_000])
def test_ranks_are_disjoint_and_have_equally_many_batches(world_size: int, window: int):
    orders = [Order(COUNTS, 8, 4, rank, world_size, window) for rank in range(world_size)]
    assert len({order.batches_per_epoch for order in orders}) == 1
    batches = orders[0].batches_per_epoch
    assert batches == sum(COUNTS) // (8 * world_size)
    for epoch in (0, 1):
        seen = [names(o.batch(epoch * batches + k)) for o in orders for k in range(batches)]
        union = set().union(*seen)
        assert all(len(batch) == 8 for batch in seen)
        assert len(union) == 8 * len(seen)  # no sample twice in an epoch, on any rank
        assert all(0 <= row < COUNTS[shard] for shard, row in union)
        assert sum(COUNTS) - len(union) < 8 * world_size


def test_the_order_is_a_pure_function_of_its_arguments():
    order = Order(COUNTS, 8, 4, 1, 2, 40)
    later = Order(COUNTS, 8, 4, 1, 2, 40)
    for step in (70, 3, 0, 41):
        assert np.array_equal(order.batch(step), later.batch(step))
    for other in (Order(COUNTS, 8, 5, 1, 2, 40), Order(COUNTS, 8, 4, 0, 2, 40)):
        assert not np.array_equal(order.batch(3), other.batch(3))


def test_epochs_are_in_different_orders_and_leave_out_different_samples():
    order = Order(COUNTS, 50, 0, window=10_000)
    left_out = []
    for epoch in range(6):
        seen = set().union(*(names(order.batch(epoch * 6 + k)) for k in range(6)))
        left_out.append({(s, r) for s, n in enumerate(COUNTS) for r in range(n)} - seen)
    assert len({frozenset(x) for x in left_out}) > 1
    assert not np.array_equal(order.batch(0), order.batch(6))


def test_shuffling_mixes_shards_within_the_window():
    order = Order((100,) * 20, 50, 0, window=1000)
    assert len(np.unique(order.batch(0)[:, 0])) > 5
    assert set(np.unique(order.batch(0)[:, 0])) <= set(order.shards(0))
    assert len(order.shards(0)) <= 11


def test_later_windows_do_not_touch_the_shards_before_them():
    order = Order((100,) * 20, 50, 0, window=400)
    assert set(order.shards(0)).isdisjoint(order.shards(8))
    assert order.shards(0) == order.shards(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((10,), 11, 0), "10 samples, one batch on every rank takes 11"),
        (((10,), 6, 0, 0, 2), "takes 12"),
        (((10,), 0, 0), "batch_size must be at least 1"),
        (((10,), 1, 0, 2, 2), "rank must lie in"),
    ],
)
def test_wrong_sizes_are_refused(arguments: tuple, message: str):
    with pytest.raises(UserError, match=message):
        Order(*arguments)
