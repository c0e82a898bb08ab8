"""Time and position embeddings."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from fmtt.models.embeddings import TimeEmbedding, grid_positions


def test_zero_init_is_the_zero_function():
    t = torch.rand(5)
    assert torch.equal(TimeEmbedding(8, zero_init=True)(t), torch.zeros(5, 8))
    assert TimeEmbedding(8)(t).abs().max() > 0


def test_frequencies_bound_the_time_derivative():
    """With the identity after the features, |d/dt| is at most the highest angular frequency."""
    embedding = TimeEmbedding(8, max_frequency=3.0, num_frequencies=4).double()
    recorded = []
    embedding.hidden.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
    t, h = torch.linspace(0, 1, 101, dtype=torch.float64), 1e-6
    embedding(t + h)
    embedding(t - h)
    slope = ((recorded[0] - recorded[1]) / (2 * h)).abs().max()
    assert 0.95 * 3 * math.pi < slope < 3 * math.pi + 1e-6
    assert recorded[0].shape == (101, 8)


def test_half_precision_weights_do_not_round_the_frequencies():
    narrow = TimeEmbedding(32, max_frequency=64.0).bfloat16()
    wide = copy.deepcopy(narrow).float()
    t = torch.linspace(0.9, 1, 64)
    error = (narrow(t).float() - wide(t)).norm() / wide(t).norm()
    assert narrow(t).dtype == torch.bfloat16 and error < 0.02


def test_autocast_leaves_the_time_embedding_alone():
    embedding, t = TimeEmbedding(8), torch.rand(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = embedding(t)
    assert torch.equal(inside, embedding(t))


def test_positions_are_distinct_and_bounded():
    positions = grid_positions(8, 6, 16)
    assert positions.shape == (48, 16) and positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + torch.eye(48)
    assert distances.min() > 0.05
    with pytest.raises(ValueError, match="divisible by 4"):
        grid_positions(4, 4, 6)
