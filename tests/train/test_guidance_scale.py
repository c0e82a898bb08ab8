"""One export for every guidance scale of its training: by --guidance-scale, and by cond in Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fmtt
from fmtt.__main__ import main
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models import checkpoint
from fmtt.rewards import build
from tests.train.conftest import write_teacher
from train.export import export_run
from train.run import train

CLOCKS = "data.source=clock"
ARGS = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
REWARD = "clock:time=3:47,sharpness=4"


@pytest.fixture
def distilled(toy, clock_teacher, tmp_path):
    """``distilled("[1, 3]")``: an export that was trained for a step or two with scales in that interval."""
    weak = write_teacher(tmp_path / "weak", (3, 32, 32), "dit", ARGS, std=0.1)

    def make(scales: str) -> Path:
        settings = ("guidance.method=autoguidance", f"guidance.weak={weak}", f"guidance.scale={scales}")
        small = ("max_steps=2", "batch_size=4", "evaluate.num_samples=0", "evaluate.grid_samples=0")
        config = toy(CLOCKS, *settings, *small, f"teacher={clock_teacher}", "objective.name=psd",
                     "times.diagonal=0.5", "times.midpoint=uniform", run=f"run{scales}")  # fmt: skip
        return export_run(train(config, "distill"), tmp_path / f"map{scales.replace(' ', '')}")

    return make


def run(*args: str | Path) -> int:
    return main([str(a) for a in args])


def sampled(out: Path) -> torch.Tensor:
    return load_file(out / "samples.safetensors")["samples"]


def test_one_export_serves_every_scale(distilled, clock_teacher, tmp_path, capsys):
    export = distilled("[1, 3]")
    assert fmtt.load(export).config["trained"]["guidance"]["scale"] == [1, 3]
    for w in ("1", "2.5"):
        sizes = ("--num-samples", "3", "--steps", "2", "--seed", "4")
        assert run("sample", export, *sizes, "--guidance-scale", w, "--out", tmp_path / w) == 0
    assert run("sample", export, *sizes, "--out", tmp_path / "plain") == 0
    one, other, plain = (sampled(tmp_path / name) for name in ("1", "2.5", "plain"))
    assert torch.equal(plain, one) and not torch.allclose(one, other, atol=1e-5)

    flow_map, scale = fmtt.load(export), torch.tensor([2.5])
    generator = torch.Generator().manual_seed(4)
    again = fmtt.sample(flow_map, 3, steps=2, cond={"guidance_scale": scale.expand(3)}, generator=generator)
    assert torch.equal(again, other)

    steer = ("--reward", REWARD, "--num-particles", "3", "--num-steps", "2", "--seed", "4")
    assert run("tilt", export, *steer, "--guidance-scale", "2.5", "--out", tmp_path / "tilt") == 0
    options = {"num_particles": 3, "num_steps": 2, "generator": torch.Generator().manual_seed(4)}
    tilted = fmtt.tilt(flow_map, build(REWARD), cond={"guidance_scale": scale}, **options)
    assert torch.equal(sampled(tmp_path / "tilt"), tilted.samples)
    unguided = fmtt.tilt(
        flow_map, build(REWARD), **{**options, "generator": torch.Generator().manual_seed(4)}
    )
    assert not torch.allclose(tilted.samples, unguided.samples, atol=1e-5)
    capsys.readouterr()
    # The teacher knows one scale, which is 1: at any other it is not what the map was taught.
    teacher = ("--teacher", clock_teacher, "--num-samples", "2", "--out", tmp_path / "t")
    assert run("evaluate", export, *teacher, "--guidance-scale", "2.5") == 2
    assert "takes no guidance scale as an input, so it is not the reference" in capsys.readouterr().err


@pytest.mark.slow
def test_search_and_evaluation_take_the_scale(distilled, tmp_path):
    export = distilled("[1, 3]")
    found, errors = [], []
    for w in ("1", "2.5"):
        steer = (
            "--reward",
            REWARD,
            "--num-particles",
            "3",
            "--num-steps",
            "2",
            "--keep",
            "1",
            "--rounds",
            "1",
        )
        assert run("search", export, *steer, "--guidance-scale", w, "--out", tmp_path / f"search{w}") == 0
        found.append(sampled(tmp_path / f"search{w}"))
        out = tmp_path / f"evaluate{w}"
        assert run("evaluate", export, "--num-samples", "2", "--guidance-scale", w, "--out", out) == 0
        errors.append(json.loads((out / "summary.json").read_text())["lookahead"]["rmse"]["map_1"])
    assert not torch.allclose(*found, atol=1e-5) and errors[0] != errors[1]


def test_scales_outside_the_training_are_refused(distilled, tmp_path, capsys):
    export = distilled("[2, 6]")
    capsys.readouterr()
    for given, says in (((), "without the option it is 1"), (("--guidance-scale", "6.5"), "got 6.5")):
        assert run("sample", export, *given, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "is trained for --guidance-scale from 2 to 6" in error and says in error
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert run("sample", export, "--guidance-scale", "6", "--out", tmp_path / "out") == 0


def test_a_teacher_that_was_not_trained_for_the_scale_is_refused(distilled, clock_teacher, tmp_path, capsys):
    teacher = ("--teacher", distilled("[2, 6]"), "--num-samples", "2", "--out", tmp_path / "out")
    capsys.readouterr()
    assert run("evaluate", clock_teacher, *teacher) == 2
    error = capsys.readouterr().err
    assert "is trained for --guidance-scale from 2 to 6, without the option it is 1" in error
    assert "error: --teacher " in error and error.count("\n") == 1


def test_an_export_without_that_input_refuses_a_scale(clock_teacher, tmp_path, capsys):
    for command in (("sample",), ("tilt", "--reward", REWARD), ("compare", "--reward", REWARD)):
        name, *more = command
        given = ("--guidance-scale", "2.5", "--out", tmp_path / "out")
        assert run(name, clock_teacher, *more, *given) == 2
        error = capsys.readouterr().err
        assert "takes no guidance scale as an input; leave --guidance-scale out" in error
        assert error.count("\n") == 1


def test_an_export_that_does_not_say_its_scales_takes_any(tmp_path):
    args = {**ARGS, "guidance": True}
    network = checkpoint.NETWORKS["dit"]((3, 32, 32), **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    flow_map = NeuralFlowMap(network, fmtt.Linear(), (3, 32, 32))
    options = {"network": "dit", "network_args": args, "trained": {}, "metrics": {}, "card": "# Tiny"}
    checkpoint.save(flow_map, tmp_path / "export", **options)
    for w in ("1", "40"):
        given = ("--num-samples", "2", "--guidance-scale", w)
        assert run("sample", tmp_path / "export", *given, "--out", tmp_path / w) == 0
    assert not torch.allclose(sampled(tmp_path / "1"), sampled(tmp_path / "40"), atol=1e-5)
