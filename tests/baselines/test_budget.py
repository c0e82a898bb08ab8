"""No method spends more than its budget, and none leaves most of it unspent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.baselines import budget
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian

BUDGETS = (64, 100, 256, 401, 1024, 4096)


def spend(net: Any, method: str, passes: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    settings = {"budget": passes, "num_populations": 2, "generator": generator, **options}
    return budget.run(method, net, options.pop("reward", net.reward), **settings)


@pytest.mark.parametrize("method", budget.NAMES)
def test_no_run_spends_more_than_the_budget(counted: Any, method: str) -> None:
    for passes in BUDGETS:
        net = counted()
        result = spend(net, method, passes)
        net.check(result.cost)
        spent = (net.forwards + 2 * net.recorded) / 2
        assert result.cost.passes_per_population == spent <= passes
        assert spent > 0.5 * passes


@pytest.mark.parametrize("method", budget.NAMES)
def test_more_budget_finds_more(counted: Any, method: str) -> None:
    small, large = (spend(counted(), method, passes, num_populations=60) for passes in (64, 1024))
    assert float(large.best_rewards.mean()) > float(small.best_rewards.mean())
    assert large.best.shape == (60, 2)


@pytest.mark.parametrize("method", budget.NAMES)
def test_a_reward_without_gradient_costs_no_more(counted: Any, method: str) -> None:
    """Methods that are made of a gradient refuse it; the others go on without."""
    net = counted()

    def above(x: Tensor, cond: Any = None) -> Tensor:
        return (x[:, 0] > 1).double()

    generator = torch.Generator().manual_seed(0)
    settings = {"budget": 256, "num_populations": 2, "generator": generator}
    if method in budget.NEED_GRADIENT:
        with pytest.raises(UserError, match="differentiable"):
            budget.run(method, net, above, **settings)
        return
    result = budget.run(method, net, above, **settings)
    assert result.cost.passes_per_population <= 256 and net.recorded == 0


@pytest.mark.parametrize("method", budget.NAMES)
def test_the_same_seed_gives_the_same_run(counted: Any, method: str) -> None:
    one, same = (spend(counted(), method, 128, chunk_size=5) for _ in range(2))
    assert torch.equal(one.best, same.best) and torch.equal(one.rewards, same.rewards)


def test_another_velocity_is_used_by_those_who_integrate_one(counted: Any) -> None:
    teacher = Gaussian([0.0, 0.0], 1.0)
    without = {
        m for m in budget.NAMES if not spend(counted(), m, 128, velocity=teacher.velocity).cost.forwards
    }
    assert not without
    net = counted()
    result = spend(net, "best_of_n", 128, velocity=teacher.velocity)
    assert net.forwards == 0 and result.cost.passes_per_population == 100


def test_wrong_input_is_named(counted: Any) -> None:
    with pytest.raises(UserError, match="method must be one of best_of_n"):
        spend(counted(), "best_of_m", 128)
    for method in budget.NAMES:
        with pytest.raises(UserError, match="budget=3 is too small for this method: give "):
            spend(counted(), method, 3)
