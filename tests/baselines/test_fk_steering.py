"""FK steering: what it costs, that a seed decides it, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fmtt.baselines.fk_steering import POTENTIALS, fk_steering
from fmtt.errors import UserError
from fmtt.flow.oracle import GaussianMixture


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 12),
        ({"lookahead": "flow_map"}, 12 + 11),
        ({"lookahead": "flow_map", "every": 4}, 12 + 2),
        ({"potential": "final", "lookahead": "flow_map"}, 12),
        ({"guidance": 1.0}, 3 * 12 - 4),
    ],
)
def test_cost_is_what_the_network_did(run: Any, counted: Any, options: dict[str, Any], passes: int) -> None:
    net = counted()
    result = run(fk_steering, net, net.reward, num_particles=10, num_steps=12, chunk_size=4, **options)
    net.check(result.cost)
    assert result.cost.passes == 10 * passes


@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_same_seed_gives_the_same_run(run: Any, mixture: GaussianMixture, potential: str) -> None:
    options = {"num_particles": 40, "num_populations": 3, "num_steps": 10, "potential": potential}
    one, same = (run(fk_steering, mixture, **options) for _ in range(2))
    other = run(fk_steering, mixture, seed=1, **options)
    assert torch.equal(one.samples, same.samples) and torch.equal(one.log_weights, same.log_weights)
    assert not torch.equal(one.samples, other.samples)
    chunked = run(fk_steering, mixture, chunk_size=50, **options)
    torch.testing.assert_close(chunked.samples, one.samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"potential": "min"}, "potential must be one of"),
        ({"every": 0}, "every must be at least 1"),
        ({"strength": math.inf}, "strength"),
        ({"ess_threshold": 2.0}, "ess_threshold"),
        ({"num_particles": 0}, "num_particles"),
        ({"lookahead": "far"}, "lookahead"),
    ],
)
def test_wrong_input_is_named(run: Any, mixture: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(fk_steering, mixture, **{"num_particles": 4, **options})


def test_mass_moves_to_the_reward(run: Any, mixture: GaussianMixture) -> None:
    """The reward's peak is on the side that a fresh sample is on with probability 0.3."""
    for potential in ("difference", "max"):
        options = {"num_particles": 32, "num_populations": 100, "potential": potential, "every": 10}
        result = run(fk_steering, mixture, **options)
        above = result.expect(lambda x: (x[:, 0] > 0).double()).value
        assert float(above.mean()) > 0.95
