"""Counter-based random numbers."""

from __future__ import annotations

import numpy as np

from data.counter import permutation, random_bits, uniforms


def test_first_output_is_that_of_splitmix64():
    assert random_bits(1234567)[0] == 6457827717110365317  # the generator's published test vector


def test_each_word_and_the_seed_matter_and_shapes_do_not():
    index = np.arange(5)
    table = random_bits(7, index[:, None], index[None, :])
    assert table.shape == (5, 5)
    assert len(np.unique(table)) == 25
    assert table[3, 2] == random_bits(7, 3, 2)[0]
    assert not np.intersect1d(table, random_bits(8, index[:, None], index[None, :])).size
    assert random_bits(-1, -5)[0] == random_bits(2**64 - 1, 2**64 - 5)[0]


def test_uniforms_are_uniform_and_uncorrelated():
    n = 50_000
    u = uniforms(3, np.arange(n)[:, None], np.arange(2)[None, :])
    assert u.min() > 0 and u.max() < 1
    assert (np.abs(u.mean(0) - 0.5) < 4 / np.sqrt(12 * n)).all()
    assert (np.abs(u.var(0) - 1 / 12) < 4 / np.sqrt(180 * n)).all()
    correlations = [np.corrcoef(u[:, 0], u[:, 1])[0, 1], np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]]
    assert np.abs(correlations).max() < 4 / np.sqrt(n)


def test_permutations_hold_every_number_once_and_differ_by_word():
    a, b = permutation(1000, 1, 0, 5), permutation(1000, 1, 0, 6)
    assert np.array_equal(np.sort(a), np.arange(1000))
    assert np.array_equal(a, permutation(1000, 1, 0, 5))
    assert (a != b).mean() > 0.9
