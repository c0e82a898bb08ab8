"""The pieces of the open questions: rewards and checks, standard errors, foretold ESS, maps stopped early."""

from __future__ import annotations

import json
import math

import pytest
import torch

pytest.importorskip("lightning")

import fmtt
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian
from fmtt.rewards import Composite, clock
from fmtt.rewards.clock_reward import ClockReward
from tests.benchmarks import advantage, constraints, ess, kept, map_quality, map_quality_report, questions

TIME = clock.parse_time(constraints.TARGET)


def clocks(minutes: list[float], hour_shades: list[float]) -> torch.Tensor:
    shades = torch.full((len(minutes), clock.NUM_SHADES), 0.5)
    shades[:, 2] = torch.tensor(hour_shades)
    return clock.render(clock.Clock(TIME + torch.tensor(minutes), shades))


def test_a_cell_is_computed_once(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"value": len(calls)}

    assert kept.kept(tmp_path, "a", {"n": (1, 2)}, work) == kept.kept(tmp_path, "a", {"n": (1, 2)}, work)
    assert kept.kept(tmp_path, "a", {"n": 2}, work) == {"value": 2}
    (tmp_path / "a.json").write_text("{")
    assert kept.kept(tmp_path, "a", {"n": 2}, work) == {"value": 3}


def test_another_maps_results_are_not_this_ones():
    one = fmtt.load("clock-map")
    before = kept.digest(one)
    assert before == kept.digest(fmtt.load("clock-map")) and len(before) == 8
    next(one.parameters()).data.view(-1)[0] += 1e-3
    assert kept.digest(one) != before


def test_the_error_of_a_spread_is_that_of_normal_samples():
    values = 3 * torch.randn(20, 400, generator=torch.Generator().manual_seed(0))
    found = torch.tensor([kept.spread(row) for row in values])
    assert found[0, 0] == pytest.approx(float(values[0].double().std()))
    assert found[:, 1].mean() == pytest.approx(3 / math.sqrt(2 * 399), rel=0.08)


def test_checks_know_what_a_clock_is_made_of():
    images = clocks([0.0, 0.0, 30.0, 8.0], [0.9, 0.3, 0.9, 0.95])
    found = constraints.checks(images + 0.005 * torch.randn(images.shape))
    assert found["time"].tolist() == [True, True, False, True]
    assert found["hand"].tolist() == [True, False, True, True]
    assert found["readable"].all()
    fitted, drawn = constraints.fit(images), constraints.asymmetry(clock.unscale(images))
    assert torch.allclose(fitted.asymmetry, drawn, atol=1e-3)
    assert torch.allclose(fitted.shade, torch.tensor([0.9, 0.3, 0.9, 0.95]), atol=0.02)
    assert torch.equal(found["all"], found["time"] & found["hand"] & found["rotation"])
    assert not any(met.any() for met in constraints.checks(torch.zeros(1, *clock.DATA_SHAPE)).values())


def test_what_is_near_the_target():
    near = constraints.near_target()
    assert near.mass[0] == pytest.approx(0.010, rel=0.01)  # what the prior says of itself
    assert near.mass[0] * 0.16 < near.mass[1] < near.mass[0] * 0.24 and 0 < near.mass[2] < near.mass[1]


def test_the_hand_reward_prefers_orange_and_has_a_gradient():
    scores = constraints.HandColour()(clocks([0.0] * 3, [0.2, 0.6, 1.0]))
    assert scores[0] < scores[1] < scores[2] and scores[2] > -0.1
    x = clocks([0.0], [0.2]).double().requires_grad_()
    assert torch.autograd.gradcheck(constraints.reward(3), (x,), fast_mode=True)


@pytest.mark.parametrize("lookahead", advantage.LOOKAHEADS)
def test_particles_are_what_the_budget_pays_for(lookahead):
    size = advantage.Size(populations=3, weighted_budget=300, steps=7)
    flow = Gaussian([0.5], 0.5)
    task = advantage.Task("a", flow, flow.velocity, lambda x, cond=None: x[:, 0], lambda x: {})
    found = advantage.weighted(task, lookahead, size)
    assert found["passes"] <= 300 < found["passes"] * (found["particles"] + 1) / found["particles"]


def test_the_length_of_a_gaussian_law():
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    log_p = torch.log_softmax(-x.square() / 2, 0)
    assert ess.length_of(log_p, 1.7 * x) == pytest.approx(1.7, rel=1e-3)
    sharp = -20 * x.square()  # under the tilt the variance is 1 / (1 + 40 lambda)
    assert ess.length_of(log_p, sharp) == pytest.approx(math.log(41) / math.sqrt(2), rel=1e-3)


def test_the_length_foretells_the_ess_of_an_exact_map():
    flow, slope, steps = Gaussian([0.5], 0.5), 3.0, 40
    task = advantage.Task("g", flow, flow.velocity, lambda x, cond=None: slope * x[:, 0], lambda x: {})
    found = ess.measure(task, "flow_map", steps, "every step", 512, 8)
    value, error = kept.mean(torch.tensor(found["ess"]))
    squared = slope**2 * 0.5  # of the length: the variance of the reward, at every strength
    assert abs(value - math.exp(-squared / steps)) < 4 * error
    for wrong in (2 * squared / steps, squared / steps**2, squared):
        assert abs(value - math.exp(-wrong)) > 4 * error


def test_the_pilot_is_not_measured_and_agreement_is_that_of_ranks():
    cell = {"ess": [0.1, 0.1, 0.5, 0.5], "length": [1.0, 1.0, 9.0, 9.0]}
    cells = {("denoiser", 10.0, steps, "every step"): cell for steps in (4, 8)}
    few, most = ess.points(cells, "every step", constraints.TARGET)
    assert (few.measured, most.measured) == pytest.approx((0.3, 0.5))
    assert (few.foretold, most.foretold) == pytest.approx((math.exp(-1 / 4), math.exp(-1 / 8)))
    assert few.closed_form < most.closed_form
    agreed = ess.agreement([few, most])
    assert agreed["foretold_rank_correlation"] == pytest.approx(1.0) and agreed["points"] == 2
    assert agreed["foretold_mean_error"] == pytest.approx((math.exp(-1 / 4) + math.exp(-1 / 8) - 0.8) / 2)


def test_cells_of_another_reward_are_not_taken_for_this_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        questions, "kept", lambda folder, name, given, work: asked.append((name, given)) or {}
    )
    bench = object.__new__(questions.Bench)
    bench.out, bench.digest = tmp_path, ""
    for strength in (300.0, 200.0):
        parts = {"time": ClockReward("3:47", 40.0), "hand": constraints.HandColour(strength)}
        task = advantage.Task(
            "two", Gaussian([0.5], 0.5), Gaussian([0.5], 0.5).velocity, Composite(parts), lambda x: {}
        )
        bench.level(task, advantage.Size(8, (64, 128)), "two", 2.0)
    half = len(asked) // 2
    assert half == 2 * len(questions.twins()) + len(advantage.LOOKAHEADS) == len(dict(asked))
    for (name, first), (same, second) in zip(asked[:half], asked[half:], strict=True):
        assert name == same and first != second and "sharpness=40" in first["reward"]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 32"):
        map_quality.export_at(tmp_path, 32, tmp_path / "out")


def test_the_table_and_figure_of_map_quality():
    row = {"method": "fmtt_search", "amount": 256.0, "judge": 0.5, "judge_se": 0.06}
    maps = [{"name": name, "ratio": {"map_1": r}, "rows": [row]} for name, r in (("10%", 0.9), ("100%", 0.6))]
    summary = {"runs": 4, "maps": maps, "without_map": [{**row, "method": "das"}]}
    assert map_quality_report.printed(summary).count("0.50 ± 0.06") == 3
    (axis,) = map_quality_report.curves(summary).axes
    assert axis.get_xlim()[0] > axis.get_xlim()[1] and len(axis.get_lines()) >= 2


@pytest.mark.slow
def test_quick_runs_and_continues(tmp_path, capsys):
    assert questions.main(["--quick", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [len(summary[name]["levels"]) for name in ("sharpness", "constraints")] == [2, 3]
    assert len(summary["ess"]["points"]["never"]) == 8
    for name in questions.QUESTIONS:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    capsys.readouterr()
    assert questions.main(["--quick", "--out", str(tmp_path)]) == 0
    assert ": done" not in capsys.readouterr().out


@pytest.mark.slow
def test_maps_stopped_early(tmp_path, capsys):
    assert map_quality.main(["--quick", "--out", str(tmp_path)]) == 0
    steps = [fmtt.load(tmp_path / "maps" / f"step-{k}").config["trained"]["steps"] for k in (2, 6, 20)]
    assert steps == [2, 6, 20]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [m["name"] for m in summary["maps"]] == ["10%", "30%", "100%", "shipped"]
    assert summary["maps"][0]["ratio"]["map_1"] > summary["maps"][3]["ratio"]["map_1"]
    assert "fmtt_search_denoiser" in capsys.readouterr().out
