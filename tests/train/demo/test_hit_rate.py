"""Budgets are kept by construction, whatever the budget."""

from __future__ import annotations

import pytest
import torch

import fmtt
from train.demo import hit_rate


@pytest.mark.parametrize("budget", [100, 137, 200])
@pytest.mark.parametrize("lookahead", ["flow_map", "denoiser"])
@pytest.mark.parametrize("method", [hit_rate.search, hit_rate.tilt])
def test_no_method_spends_more_than_its_budget(method, lookahead: str, budget: int) -> None:
    teacher = fmtt.load("clock-teacher")
    setting = hit_rate.Setting(teacher, teacher, torch.Generator().manual_seed(0), runs=1)
    result = method(setting, lookahead, budget)
    assert 0.8 * budget <= result.cost.passes_per_population <= budget


def test_best_of_n_at_a_small_budget_is_a_prefix_of_the_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_rate, "BUDGETS", (8, 16))
    teacher = fmtt.load("clock-teacher")
    setting = hit_rate.Setting(teacher, teacher, torch.Generator().manual_seed(0), runs=4)
    few, many = hit_rate.best_of(4, "velocity")(setting)
    assert (few.passes, many.passes) == (8, 16)
    assert few.mean_reward <= many.mean_reward
