"""The demo's hit rates: budgets are kept, and the better variant counts."""

from __future__ import annotations

import pytest

import fmtt
from train.demo import hit_rate
from train.demo.hit_rate import Outcome


def test_every_variant_keeps_its_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = fmtt.load("clock-teacher")
    for variants in hit_rate.METHODS.values():
        for variant in variants:
            (found,) = hit_rate.outcomes(variant, teacher, teacher, runs=1, amounts=(100,))
            assert 50 <= found.passes <= 100, variant  # one base sample costs 50


def test_the_variant_that_hits_more_often_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(variant: str, *_: object, **__: object) -> list[Outcome]:
        rate = 0.75 if "tilt" in variant else 0.5
        return [Outcome(rate, -1.0, 10.0)] * len(hit_rate.BUDGETS)

    monkeypatch.setattr(hit_rate, "outcomes", found)
    teacher = fmtt.load("clock-teacher")
    result = hit_rate.compare(teacher, teacher)
    assert result["hit_rate"]["fmtt_flow_map"] == [0.75] * 5
    assert set(result["variants"]["fmtt_flow_map"]) == {"fmtt_tilt", "fmtt_search"}
    assert result["hit_rate"]["best_of_n"] == [0.5] * 5


def test_two_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_rate, "METHODS", {"base": ("base",), "few": ("best_of_n_few_step",)})
    monkeypatch.setattr(hit_rate, "RUNS", 3)
    monkeypatch.setattr(hit_rate, "BUDGETS", (8, 20))
    flow_map, teacher = fmtt.load("clock-map"), fmtt.load("clock-teacher")
    one = list(hit_rate.all_outcomes(flow_map, teacher, seed=1, processes=1))
    two = list(hit_rate.all_outcomes(flow_map, teacher, seed=1, processes=2))
    assert (
        [row[:2] for row in one]
        == [row[:2] for row in two]
        == [("base", "base"), ("few", "best_of_n_few_step")]
    )
    for (_, _, mine), (_, _, theirs) in zip(one, two, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.hit_rate, a.passes) == (b.hit_rate, b.passes)
            assert a.mean_reward == pytest.approx(b.mean_reward, rel=1e-4)  # last bits depend on threads
