"""The MLP fits a velocity that is known; what it shares with every network is in test_networks.py."""

from __future__ import annotations

import math

import pytest
import torch

from fmtt.flow.oracle import GaussianMixture
from fmtt.models.mlp import MLP


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 3)])
def test_any_data_shape(shape: tuple[int, ...]):
    x, t = torch.randn(4, *shape), torch.rand(4)
    assert MLP(shape, width=8, depth=1)(x, t, t).shape == x.shape


def test_frequencies_of_the_coordinates_enter_beside_them():
    network = MLP((2,), width=8, depth=1, position_frequency=4.0)
    x = torch.tensor([[0.5, -1.0]])
    found = network.features(x)
    assert found.shape == (1, 2 * (1 + 2 * 6)) and torch.equal(found[:, :2], x)
    lowest, highest = math.pi / 2, 4 * math.pi
    torch.testing.assert_close(found[0, 2], torch.tensor(math.cos(lowest * 0.5)))
    torch.testing.assert_close(found[0, 7], torch.tensor(math.cos(highest * 0.5)))
    torch.testing.assert_close(found[0, -1], torch.tensor(math.sin(-highest)), atol=1e-5, rtol=0)
    assert torch.equal(MLP((2,), width=8, depth=1).features(x), x)


def test_impossible_sizes_are_refused():
    for arguments in ({"data_shape": (0,)}, {"data_shape": (2,), "width": 0}):
        with pytest.raises(ValueError, match="positive sizes"):
            MLP(**arguments)  # type: ignore[arg-type]


def test_learns_the_velocity_of_a_mixture(generator: torch.Generator):
    """Flow matching on a 2-D mixture brings the error to a few per cent of the velocity's variance."""
    mixture = GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.5]], [0.1, 0.2], dtype=torch.float32)
    network = MLP((2,), width=64, depth=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(400):
        t = 0.95 * torch.rand(256, generator=generator)
        x = mixture.interpolant.interpolate(
            torch.randn(256, 2, generator=generator), mixture.sample(256, generator), t
        )
        loss = (network(x, t, t) - mixture.velocity(x, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
