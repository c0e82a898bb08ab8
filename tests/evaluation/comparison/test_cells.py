"""Cells: planned once, reproducible one by one, kept on disk."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fmtt.errors import UserError
from fmtt.evaluation.comparison import cells, units
from fmtt.evaluation.comparison.cells import Cell, Setting
from fmtt.flow.oracle import Gaussian


def reward(x, cond=None):
    return -(x - 1.5).square().sum(1)


@pytest.fixture
def setting() -> Setting:
    flow_map = Gaussian([0.0, 0.0], 0.25, dtype=torch.float32)
    return Setting(flow_map, reward, judge=lambda x: (x[:, 0] > 0.5).float())


def test_a_plan_covers_every_run_once():
    plan = cells.plan(["a", "b"], {"a": {64: 64, 256: 256}, "b": {64: 50, 256: 200}}, runs=40)
    for method in ("a", "b"):
        for amount in (64, 256):
            mine = [c for c in plan if (c.method, c.amount) == (method, amount)]
            assert sorted(c.batch for c in mine) == [0, 1, 2]
            assert sum(c.runs for c in mine) == 40
    assert len({c.name for c in plan}) == len(plan)


def test_a_cell_is_the_same_whatever_ran_before(setting):
    first, second = (Cell("best_of_n_few_step", 64, 64, k, 4) for k in (0, 1))
    alone = cells.run(setting, second)
    cells.run(setting, first)
    after = cells.run(setting, second)
    other = cells.run(setting, first)
    assert alone is not None and after is not None and other is not None
    assert torch.equal(alone.best, after.best)
    assert not torch.equal(alone.best, other.best)
    assert torch.equal(alone.judge, (alone.best[:, 0] > 0.5).double())
    assert torch.all(alone.passes <= 64)


def test_a_cell_comes_back_from_its_file(setting, tmp_path):
    cell = Cell("best_of_n_few_step", 64, 64, 0, 3)
    runs = cells.run(setting, cell)
    assert runs is not None
    assert not cells.finished(tmp_path, cell)
    cells.save(tmp_path, cell, runs)
    assert cells.finished(tmp_path, cell)
    loaded = cells.load(tmp_path, cell)
    assert loaded is not None
    assert all(torch.equal(a, b) for a, b in zip(runs, loaded, strict=True))


def test_a_budget_too_small_for_the_method_is_kept_as_such(setting, tmp_path):
    cell = Cell("best_of_n", 10, 10, 0, 3)
    assert cells.run(setting, cell) is None
    cells.save(tmp_path, cell, None)
    assert cells.finished(tmp_path, cell) and cells.load(tmp_path, cell) is None


def test_a_damaged_file_is_named(tmp_path):
    cell = Cell("best_of_n", 64, 64, 0, 3)
    (tmp_path / f"{cell.name}.safetensors").write_bytes(b"\x00" * 5)
    with pytest.raises(UserError, match=r"best_of_n-64-000x3\.safetensors cannot be read"):
        cells.load(tmp_path, cell)


def test_restoring_tells_the_models_own_samples_from_others():
    flow_map = Gaussian([0.0, 0.0], 0.01)
    generator = torch.Generator().manual_seed(0)
    own = 0.1 * torch.randn(256, 2, generator=generator, dtype=torch.float64)
    near = cells.restoration_error(flow_map, own, None, generator).mean()
    far = cells.restoration_error(flow_map, own + 1.0, None, generator).mean()
    assert far > 4 * near


@pytest.mark.parametrize("method", ["best_of_n_few_step", "best_of_n"])
def test_passes_for_reward_calls_are_the_most_that_keep_within_them(method):
    passes = units.passes_for_calls(method, 8)
    assert units.reward_calls(method, passes) <= 8 < units.reward_calls(method, passes + 1)


@pytest.mark.parametrize(("method", "calls"), [("das", 64), ("fmrg", 32), ("fmtt_search", 32)])
def test_passes_for_reward_calls_are_the_most_where_calls_rise_and_fall(method, calls):
    passes = units.passes_for_calls(method, calls)
    assert units.reward_calls(method, passes) <= calls
    assert all(units.reward_calls(method, p) > calls for p in range(passes + 1, passes + 120))


@pytest.mark.parametrize("method", ["best_of_n_few_step", "multi_round", "fmtt_search", "fmtt_tilt"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_counted_reward_calls_are_those_that_a_run_makes(setting, method, differentiable):
    """One call is one sample scored, whatever the batch; a trial of the gradient would be one more."""
    seen = 0

    class Counted:
        def __call__(self, x, cond=None):
            nonlocal seen
            seen += len(x)
            return reward(x if differentiable else x.detach())

    counted = Counted()
    counted.differentiable = differentiable  # pyright: ignore[reportAttributeAccessIssue]
    runs = cells.run(dataclasses.replace(setting, reward=counted), Cell(method, 96, 96, 0, 3))
    assert runs is not None
    assert float(runs.reward_calls.sum()) == pytest.approx(seen)
    assert float(runs.reward_calls[0]) == units.reward_calls(method, 96, differentiable)


def test_the_pace_is_seconds_per_pass(setting):
    assert 0 < units.pace("best_of_n_few_step", setting.flow_map, reward, 2) < 1
