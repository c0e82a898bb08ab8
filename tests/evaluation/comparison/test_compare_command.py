"""``fmtt compare`` on a tiny random-weight export: what it writes, how it continues, what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmtt.__main__ import main
from fmtt.baselines import budget
from fmtt.evaluation.comparison import cells
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models import checkpoint
from fmtt.rewards import describe
from fmtt.rewards.clock_reward import ClockReward

METHODS = "best_of_n_few_step,fmtt_search"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    args = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
    network = checkpoint.NETWORKS["dit"]((3, 16, 16), **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    flow_map = NeuralFlowMap(network, Linear(), (3, 16, 16))
    folder = tmp_path_factory.mktemp("export") / "tiny"
    checkpoint.save(
        flow_map, folder, network="dit", network_args=args, trained={"steps": 0}, metrics={}, card="# Tiny"
    )
    return str(folder)


def compare(export: str, out: Path, *more: str) -> int:
    given = ["compare", export, "--reward", "clock:time=3:47,sharpness=4", "--runs", "3", "--out", str(out)]
    return main([*given, "--methods", METHODS, "--budgets", "48,96", *more])


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))


def test_it_writes_numbers_figures_and_a_page(export, tmp_path, capsys):
    assert compare(export, tmp_path) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "cells",
        "comparison.csv",
        "comparison.json",
        "pareto.png",
        "report.html",
        "samples.png",
        "summary.json",
    }
    table = rows(tmp_path)
    assert [(r["method"], float(r["amount"])) for r in table] == [
        (method, budget) for budget in (48, 96) for method in METHODS.split(",")
    ]
    assert all(float(r["passes"]) <= float(r["amount"]) for r in table)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["judge"] == "hit rate by the judge" and len(summary["rows"]) == 4
    printed = capsys.readouterr().out
    assert "* top" in printed and "reward calls" in printed and "judge calls" in printed
    assert all(float(r["judge_calls"]) == 1 < float(r["reward_calls"]) for r in table)


def test_it_continues_where_it_stopped(export, tmp_path, monkeypatch):
    real, ran = cells.run, []

    def stops(setting, cell):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell.name)
        return real(setting, cell)

    monkeypatch.setattr(cells, "run", stops)
    assert compare(export, tmp_path / "a") == 130
    monkeypatch.setattr(cells, "run", lambda setting, cell: (ran.append(cell.name), real(setting, cell))[1])
    assert compare(export, tmp_path / "a") == 0
    assert len(ran) == len(set(ran)) == 4
    assert compare(export, tmp_path / "b") == 0
    times = ("seconds",)
    for one, other in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert {k: v for k, v in one.items() if k not in times} == {
            k: v for k, v in other.items() if k not in times
        }


def test_a_folder_holds_one_comparison(export, tmp_path, capsys):
    assert compare(export, tmp_path) == 0
    assert compare(export, tmp_path, "--seed", "1") == 2
    assert "holds a comparison with seed=0, now it is 1" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "then"), [("3", "20"), ("20", "3")])
def test_another_number_of_runs_is_another_comparison(export, tmp_path, first, then):
    few = ("--methods", "best_of_n_few_step", "--budgets", "8")
    for runs in (first, then):
        assert compare(export, tmp_path, *few, "--runs", runs) == 0
        assert [row["runs"] for row in rows(tmp_path)] == [runs]


def test_an_export_that_was_trained_on_is_another_export(export, tmp_path, capsys):
    changing = tmp_path / "export"
    shutil.copytree(export, changing)
    assert compare(str(changing), tmp_path / "out") == 0
    weights = load_file(changing / "model.safetensors")
    save_file({name: 1.01 * value for name, value in weights.items()}, changing / "model.safetensors")
    assert compare(str(changing), tmp_path / "out") == 2
    assert "holds a comparison with content of export=" in capsys.readouterr().err


def test_a_comparison_that_came_to_nothing_leaves_the_folder_free(export, tmp_path):
    nobody = "remote:url=http://127.0.0.1:9/v1,model=none,tries=1"
    assert compare(export, tmp_path, "--reward", nobody) == 2
    assert (tmp_path / "comparison.json").is_file()
    assert compare(export, tmp_path) == 0


def test_methods_that_need_a_gradient_are_left_out_of_all(export, tmp_path, monkeypatch, capsys):
    without = replace(describe(ClockReward()), differentiable=False)
    monkeypatch.setattr(ClockReward, "description", without)
    assert compare(export, tmp_path / "a", "--methods", "all", "--budgets", "100", "--runs", "2") == 0
    methods = {row["method"] for row in rows(tmp_path / "a")}
    assert methods == set(budget.NAMES) - set(budget.NEED_GRADIENT)
    assert "das, which needs a gradient" in (tmp_path / "a" / "report.html").read_text()
    capsys.readouterr()
    assert compare(export, tmp_path / "b", "--methods", "das") == 2
    said = capsys.readouterr().err
    assert "das needs a gradient" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "best_of_k"], "did you mean .best_of_n.?"),
        (["--budgets", "64,none"], "is not a number"),
        (["--budgets", "1"], "too small for every method"),
        (["--unit", "passses"], "did you mean .passes.?"),
    ],
)
def test_mistakes_are_one_line(export, tmp_path, capsys, more, message):
    assert compare(export, tmp_path, *more) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1


def test_a_budget_too_small_leaves_the_folder_free(export, tmp_path):
    assert compare(export, tmp_path, "--budgets", "1") == 2
    assert not (tmp_path / "cells").exists() and not (tmp_path / "comparison.json").exists()


def test_budgets_of_reward_calls_are_kept(export, tmp_path):
    assert compare(export, tmp_path, "--unit", "reward_calls", "--budgets", "12") == 0
    assert all(6 <= float(r["reward_calls"]) <= 12 for r in rows(tmp_path))


@pytest.mark.slow
def test_processes_change_nothing_but_the_time(export, tmp_path):
    assert compare(export, tmp_path / "one") == 0
    assert compare(export, tmp_path / "two", "--processes", "2") == 0
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one["method"] == two["method"]
        # The last bits of a matrix product depend on the number of threads, which workers share.
        for name in ("amount", "reward", "judge", "restoration", "diversity", "passes"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4)
