"""DAS: its temperature, cost, seeds, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fmtt.baselines.das import das, temper
from fmtt.errors import UserError
from fmtt.flow.oracle import GaussianMixture


def test_the_temperature_rises_to_one() -> None:
    by_itself, fast = temper(10), temper(10, gamma=0.5)
    assert by_itself[0] == fast[0] == 0 and by_itself[-1] == fast[-1] == 1
    assert by_itself[5] == pytest.approx(2**0.5 - 1) and fast[1] == pytest.approx(0.5)
    assert fast[2:] == (1.0,) * 9
    assert all(a < b for a, b in zip(by_itself, by_itself[1:], strict=False))
    assert temper(10, gamma=0.001)[-1] == 1


def test_mass_moves_to_the_reward(run: Any, mixture: GaussianMixture) -> None:
    result = run(das, mixture, num_particles=16, num_populations=100, num_steps=30)
    assert float(result.expect(lambda x: (x[:, 0] > 0).double()).value.mean()) > 0.95


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 3 * 12 - 4), (0.0, 12)])
def test_cost_is_what_the_network_did(run: Any, counted: Any, guidance: float, passes: int) -> None:
    net = counted()
    options = {"num_particles": 10, "num_steps": 12, "guidance": guidance, "chunk_size": 4}
    cost = run(das, net, net.reward, **options).cost
    net.check(cost)
    assert cost.passes == 10 * passes


def test_the_same_seed_gives_the_same_run(run: Any, mixture: GaussianMixture) -> None:
    options = {"num_particles": 20, "num_populations": 3, "num_steps": 20}
    one, same = (run(das, mixture, **options) for _ in range(2))
    assert torch.equal(one.samples, same.samples) and torch.equal(one.log_weights, same.log_weights)
    assert not torch.equal(one.samples, run(das, mixture, seed=1, **options).samples)


def test_a_reward_without_gradient_needs_no_guidance(run: Any, mixture: GaussianMixture) -> None:
    def steps(x: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return (x[:, 0] > 0).double()

    with pytest.raises(UserError, match="das needs a differentiable reward"):
        run(das, mixture, steps, num_particles=4)
    assert run(das, mixture, steps, num_particles=4, guidance=0.0).cost.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"), [({"gamma": 0.0}, "gamma"), ({"ess_threshold": -1.0}, "ess_threshold")]
)
def test_wrong_input_is_named(
    run: Any, mixture: GaussianMixture, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(das, mixture, num_particles=4, **options)
