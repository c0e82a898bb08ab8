"""``fmtt rewards``, sums of rewards, and held-out judges on a tiny random-weight export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmtt import png
from fmtt.__main__ import main
from fmtt.cli.judge import ClockJudge, RewardJudge
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models import checkpoint
from fmtt.rewards import REWARDS, Described, Description, build, clock

SHAPE, VALUES = (3, 8, 8), (-0.5, 0.5)
SYMMETRY = "symmetry:axis=vertical,strength=4"
BRIGHT = "brightness:target=0.9,strength=4"
TILT = ("--num-particles", "6", "--num-steps", "3", "--weights", "path")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder, args = (
        tmp_path_factory.mktemp("exports") / "tiny",
        {"patch": 8, "dim": 16, "depth": 1, "heads": 2},
    )
    network = checkpoint.NETWORKS["dit"](SHAPE, **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    trained = {"value_range": list(VALUES), "steps": 0}
    checkpoint.save(
        NeuralFlowMap(network, Linear(), SHAPE), folder,
        network="dit", network_args=args, trained=trained, metrics={}, card="# Tiny",
    )  # fmt: skip
    return str(folder)


def run(*args: str | Path) -> int:
    return main([str(a) for a in args])


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_every_reward_is_listed(capsys):
    assert run("rewards") == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{printed}" for name in REWARDS)
    assert "axis=vertical, strength=1000, value_range=-1:1" in printed
    assert "differentiable; values from -inf to 0; needs pixels" in printed
    assert "rgb (required: numbers separated by :)" in printed


def test_one_reward_is_shown_in_full(capsys):
    assert run("rewards", "rotation") == 0
    printed = capsys.readouterr().out
    assert "degrees: 90, 180 or 270" in printed and "symmetry:" not in printed


def test_the_list_as_json(capsys):
    assert run("rewards", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(REWARDS)
    assert run("rewards", "colour", "--json") == 0
    colour = json.loads(capsys.readouterr().out)["colour"]
    assert colour["value_range"] == [None, 0.0] and colour["space"] == "pixels" and colour["differentiable"]
    arguments = {a["name"]: a for a in colour["arguments"]}
    assert arguments["rgb"]["required"] and arguments["rgb"]["type"] == "numbers separated by :"
    assert arguments["strength"] == {
        "name": "strength",
        "type": "a number",
        "required": False,
        "default": 100.0,
    }


def test_parts_and_a_held_out_judge_are_reported(export, tmp_path):
    out = tmp_path / "tilt"
    rewards = ("--reward", SYMMETRY, "--reward", f"0.5*{BRIGHT}")
    judge = "rotation:strength=2 + 3*antisymmetry:strength=2"
    assert run("tilt", export, *rewards, "--judge", judge, *TILT, "--out", out) == 0
    said, tensors = summary(out), load_file(out / "samples.safetensors")
    assert said["arguments"]["reward"] == f"{SYMMETRY} + 0.5*{BRIGHT}"
    weights = torch.softmax(tensors["log_weights"], 0)
    parts = said["reward_parts"]
    assert set(parts) == {SYMMETRY, BRIGHT} and parts[BRIGHT]["weight"] == 0.5
    for spec, found in parts.items():
        values = build(spec, value_range=VALUES)(tensors["samples"], None).double()
        assert found["mean"] == pytest.approx(float((weights * values).sum()), rel=1e-5)
        assert found["best"] == pytest.approx(float(values.max()), rel=1e-5)
    assert said["mean_reward"] == pytest.approx(
        parts[SYMMETRY]["mean"] + 0.5 * parts[BRIGHT]["mean"], rel=1e-5
    )
    found = said["judge"]
    values = build(judge, value_range=VALUES)(tensors["samples"], None).double()
    assert found["judge"] == judge
    assert found["mean"] == pytest.approx(float((weights * values).sum()), rel=1e-5)
    assert set(found["parts"]) == {"rotation:strength=2", "antisymmetry:strength=2"}


def test_the_judge_changes_nothing_but_the_report(export, tmp_path):
    samples = []
    for judge in ("none", "rotation"):
        out = tmp_path / judge
        assert run("tilt", export, "--reward", SYMMETRY, "--judge", judge, *TILT, "--out", out) == 0
        samples.append(load_file(out / "samples.safetensors")["samples"])
        assert summary(out)["reward_parts"] is None
    assert torch.equal(*samples)


def test_search_reports_the_judge_of_its_best(export, tmp_path):
    more = ("--num-particles", "4", "--num-steps", "3", "--keep", "2", "--rounds", "1")
    sums = f"{SYMMETRY} + 0.5*{BRIGHT}"
    assert run("search", export, "--reward", sums, "--judge", "rotation", *more, "--out", tmp_path) == 0
    said, best = summary(tmp_path), load_file(tmp_path / "samples.safetensors")["best"]
    value = float(build("rotation", value_range=VALUES)(best, None)[0])
    assert said["judge"] == {
        "judge": "rotation",
        "mean": pytest.approx(value, rel=1e-5),
        "best": pytest.approx(value, rel=1e-5),
    }
    total = said["reward_parts"][SYMMETRY]["best"] + 0.5 * said["reward_parts"][BRIGHT]["best"]
    assert said["best_reward"] == [pytest.approx(total, rel=1e-5)]


def test_a_clock_within_a_sum_is_still_read(export, tmp_path):
    sums = f"clock:time=3:47,sharpness=4 + 0.5*{BRIGHT}"
    assert run("tilt", export, "--reward", sums, *TILT, "--out", tmp_path) == 0
    assert summary(tmp_path)["judge"]["judge"] == "clock"
    assert summary(tmp_path)["judge"]["target"] == "3:47"


def test_an_inverse_problem_from_a_file(export, tmp_path):
    png.write(tmp_path / "low.png", torch.rand(3, 2, 2))
    spec = f"super_resolution:measurement={tmp_path / 'low.png'},factor=4,noise=0.5"
    assert run("tilt", export, "--reward", spec, *TILT, "--out", tmp_path / "out") == 0
    tensors = load_file(tmp_path / "out" / "samples.safetensors")
    expected = build(spec, value_range=VALUES)(tensors["samples"], None)
    torch.testing.assert_close(tensors["rewards"], expected)


def test_what_a_reward_reports_of_itself_is_written(export, tmp_path, monkeypatch):
    class Reporting(Described):
        """Has read half of its prompt."""

        description = Description("reports", True)
        report = {"truncated_prompts": ["long"]}

        def __init__(self, level: float = 0.0) -> None:
            self.level = level

        def __call__(self, x1, cond=None):
            return (x1 - self.level).flatten(1).mean(1)

    monkeypatch.setitem(REWARDS, "reporting", Reporting)
    judge = ("--judge", "reporting:level=1")
    assert run("tilt", export, "--reward", f"reporting + {SYMMETRY}", *judge, *TILT, "--out", tmp_path) == 0
    said = summary(tmp_path)
    assert said["reward_reports"] == {"reporting": Reporting.report}
    assert said["judge"]["reports"] == {"reporting:level=1": Reporting.report}


def test_every_judge_gives_one_number_per_sample(generator):
    x = torch.rand(5, 3, 32, 32, generator=generator) - 0.5
    reward = build("rotation", value_range=VALUES)
    found = RewardJudge("rotation", reward, lambda n: None).values(x)
    torch.testing.assert_close(found, reward(x, None).double())
    times = torch.tensor([227.0, 240.0, 30.0])
    drawn = clock.render(clock.Clock(times, torch.full((3, clock.NUM_SHADES), 0.5)))
    assert ClockJudge(227.0, 10.0).values(drawn).tolist() == [1, 0, 0]
    assert ClockJudge(None, 10.0).values(torch.cat([drawn, x[:1]])).tolist() == [1, 1, 1, 0]


def test_a_remote_judge_writes_no_captions():
    class Remote(Described):
        description = Description("far away", False, remote=True)

        def __call__(self, x1, cond=None):
            raise AssertionError("called")

    assert RewardJudge("remote", Remote(), lambda n: None).captions(torch.zeros(2, *SHAPE)) == ["", ""]


MISTAKES = [
    ("rewards symetry", "did you mean 'symmetry'?"),
    ("rewards symmetry --jason", "did you mean '--json'?"),
    ("tilt EXPORT --reward symmetry --judge symetry --out OUT", "did you mean 'symmetry'?"),
    ("tilt EXPORT --reward symmetry --judge rotation:degrees=45 --out OUT", "degrees must be 90"),
    (
        "tilt EXPORT --reward rotation:degrees=180 --judge 2*rotation --out OUT",
        "--judge 2*rotation is not held out: --reward optimises rotation, reported as it is",
    ),
    ("tilt EXPORT --reward symmetry --judge symmetry --out OUT", "--judge symmetry is not held out"),
    ("tilt nowhere --reward symetry --out OUT", "did you mean 'symmetry'?"),
    ("tilt EXPORT --reward symmetry --reward symmetry --out OUT", "given twice; add the weights"),
    (
        "tilt EXPORT --reward colour:rgb=1 --out OUT",
        "--reward colour:rgb=1 cannot score samples of shape 3 × 8 × 8",
    ),
    (
        "tilt EXPORT --reward symmetry --judge colour:rgb=1 --out OUT",
        "--judge colour:rgb=1 cannot score samples",
    ),
    ("evaluate EXPORT --reward symetry --out OUT", "did you mean 'symmetry'?"),
]


@pytest.mark.parametrize("line, says", MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(line, says, export, tmp_path, capsys):
    words = [{"EXPORT": export, "OUT": str(tmp_path / "out")}.get(word, word) for word in line.split()]
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.out == ""
