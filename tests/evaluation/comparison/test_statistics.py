"""Rows of a comparison against values worked out by hand."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch

from fmtt.evaluation.comparison import statistics
from fmtt.evaluation.comparison.cells import Runs
from fmtt.evaluation.comparison.statistics import Row


def runs(judge: list[float], reward: list[float] | None = None) -> Runs:
    n = len(judge)
    values = torch.tensor(judge, dtype=torch.float64)
    best = torch.arange(n, dtype=torch.float32)[:, None].expand(n, 4)
    ones = torch.ones(n, dtype=torch.float64)
    given = ones if reward is None else torch.tensor(reward, dtype=torch.float64)
    return Runs(best, given, values, 0.1 * ones, 60 * ones, 5 * ones, 0.5 * ones)


def test_means_and_standard_errors():
    row = statistics.row("a", 64, runs([1, 1, 0, 0], [1.0, 2.0, 3.0, 4.0]))
    assert row.reward == 2.5
    assert row.reward_se == pytest.approx(torch.tensor([1.0, 2, 3, 4]).std().item() / 2)
    assert (row.passes, row.reward_calls, row.judge_calls, row.seconds) == (60, 5, 1, 0.5)
    assert statistics.row("a", 64, runs([math.nan, math.nan])).judge_calls == 0


def test_the_standard_error_of_a_rate_is_never_zero():
    mean, error = statistics.mean(torch.ones(64, dtype=torch.float64))
    assert mean == 1
    assert error == pytest.approx(math.sqrt(66 / 68 * 2 / 68 / 68))


def test_diversity_is_the_mean_distance_of_pairs():
    assert statistics.diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5 / math.sqrt(2))
    assert math.isnan(statistics.diversity(torch.zeros(1, 2)))


def at(judge: float, error: float, reward: float = 0.0, amount: float = 64) -> Row:
    nan = float("nan")
    return Row("m", amount, 64, reward, 0.1, judge, error, 0, 0, nan, 1, 1, 1, 1)


def test_the_top_is_the_best_and_what_is_within_one_standard_error_of_it():
    rows = [at(0.9, 0.03), at(0.86, 0.04), at(0.8, 0.05), at(0.1, 0.01, amount=128)]
    assert [r.top for r in statistics.mark_top(rows)] == [True, True, False, True]


def test_without_a_judge_the_reward_decides():
    nan = float("nan")
    rows = [at(nan, nan, reward=1.0), at(nan, nan, reward=2.0)]
    assert [r.top for r in statistics.mark_top(rows)] == [False, True]


def test_runs_of_several_batches_are_joined_and_written_as_csv():
    joined = statistics.join([runs([1, 1]), runs([0, 0, 0])])
    row = statistics.row("a", 64, joined)
    assert (row.runs, row.judge) == (5, 0.4)
    (read,) = csv.DictReader(io.StringIO(statistics.to_csv([row])))
    assert read["method"] == "a" and float(read["judge"]) == 0.4
