"""Batches ahead of time, and a run that goes on with another number of ranks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from data.module import open_batches
from data.stream import Layout, Stream
from fmtt.errors import UserError


def steps(batch_size: int, world_size: int, accumulate: int, count: int, **begun: int) -> list[set]:
    """The places (stream, position) of each optimizer step, over all ranks and passes."""
    found = []
    for step in range(count):
        seen = []
        for rank in range(world_size):
            layout = Layout(batch_size, rank, world_size, accumulate, **begun)
            for part in range(accumulate):
                streams, places = layout.places(step * accumulate + part)
                seen += zip(streams.tolist(), places.tolist(), strict=True)
        assert len(seen) == len(set(seen)) == batch_size * world_size * accumulate
        found.append(set(seen))
    return found


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate"), [(6, 4, 1), (12, 2, 1), (6, 1, 4), (3, 8, 1), (2, 3, 4)]
)
def test_every_number_of_ranks_sees_the_same_samples_in_each_step(
    batch_size: int, world_size: int, accumulate: int
):
    expected = steps(6, 4, 1, 9)
    assert steps(batch_size, world_size, accumulate, 9, streams=4) == expected
    used = Layout(6, 0, 4).used(3)
    assert steps(batch_size, world_size, accumulate, 6, streams=4, start=used) == expected[3:]
    resumed = Layout(batch_size, 0, world_size, accumulate, 4, used)
    assert resumed.used(2 * accumulate) == Layout(6, 0, 4).used(5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_with_the_ranks_that_a_run_began_with_each_has_a_sequence_of_its_own(accumulate: int):
    layout = Layout(5, 2, 4, accumulate)
    for number in range(7):
        streams, places = layout.places(number)
        assert set(streams.tolist()) == {2}
        assert np.array_equal(places, number * 5 + np.arange(5))


def test_steps_that_cannot_be_shared_out_are_refused():
    with pytest.raises(UserError, match="began with 4 ranks"):
        Layout(3, 0, 2, 1, 4)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_what_is_read_does_not_depend_on_how_far_ahead(ahead: int):
    batches = open_batches("checkerboard", 4)
    stream = iter(Stream(lambda number: batches, Layout(4, start=12), ahead=ahead))
    for step in (3, 4, 5):
        assert torch.equal(next(stream).x, batches.batch(step).x)
    stream.close()  # type: ignore[attr-defined]


def test_parts_from_several_streams_are_joined_in_order():
    def stream(number: int):
        return open_batches("mixture-labelled", 3, num_samples=48, rank=number, world_size=2)

    joined = Stream(stream, Layout(6, streams=2)).batch(4)
    parts = [stream(number).batch(4) for number in range(2)]
    assert torch.equal(joined.x, torch.cat([part.x for part in parts]))
    assert joined.cond is not None
    assert torch.equal(joined.cond["label"], torch.cat([p.cond["label"] for p in parts if p.cond]))


def test_an_error_in_the_background_reaches_the_reader_and_the_thread_ends():
    def fail(number: int):
        raise UserError("nothing there")

    with pytest.raises(UserError, match="nothing there"):
        next(iter(Stream(fail, Layout(2))))
    for thread in [t for t in threading.enumerate() if t.name.startswith("data")]:
        thread.join(10)
        assert not thread.is_alive()
