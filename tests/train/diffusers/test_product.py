"""The whole way on every family: encode, distil, export, command line, pipeline; two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.__main__ import main as data
from fmtt.__main__ import main as fmtt_main
from fmtt.models.diffusers.pretrained import FAMILIES
from tests.models.diffusers.conftest import conditions
from tests.train.diffusers.conftest import SHAPE
from tests.train.diffusers.test_distill import check_run
from train.__main__ import main
from train.build import build_module
from train.losses import OBJECTIVES, PathSample, Times

PROGRAM = Path(__file__).parents[1] / "ddp_program.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_from_captions_to_pictures(
    name: str, yaml: Path, words: Any, folder: Any, tmp_path: Path, capsys: Any
):
    (tmp_path / "captions.txt").write_text("".join(f"picture {c}\n" for c in "abcdefgh"))
    encode = ["encode", "--captions", str(tmp_path / "captions.txt"), "--model", folder(name)]
    encode += ["--out", str(tmp_path / "shards"), "--height", "8", "--width", "8", "--dtype", "float32"]
    assert data([*encode, "--max-sequence-length", "6", "--steps", "2", "--guidance-scale", "3"]) == 0
    assert data(["verify", str(tmp_path / "shards")]) == 0
    common = ("max_steps=20", f"data.source={tmp_path / 'shards'}", "checkpoint.every_steps=20")
    for full in (False, True):
        for objective in ("lmd", "psd", "emd"):
            run = f"{objective}-{full}"
            more = (*common, f"objective.name={objective}")
            if objective == "emd" and not full:
                more += ("student.checkpointing=true",)
            if objective == "psd" and name != "flux":
                more += ("student.own_guidance=true",)
            assert main(["distill", str(yaml), *words(name, *more, full=full, run=run)]) == 0
            summary = json.loads((tmp_path / run / "summary.json").read_text())
            assert summary["steps"] == 20 and torch.tensor(summary["metrics"]["loss"]).isfinite()
        check_run(str(tmp_path / f"lmd-{full}"), name, folder(name), tmp_path / f"out-{full}", full=full)

    export = str(tmp_path / "out-False" / "export0")
    few = ["--prompt", "a cat", "--device", "cpu"]
    assert fmtt_main(["sample", export, *few, "--num-samples", "2", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "samples.png").is_file()
    steered = ["--reward", "brightness + 0.5*symmetry", "--num-particles", "4", "--num-steps", "3"]
    assert fmtt_main(["tilt", export, *few, *steered, "--out", str(tmp_path / "t")]) == 0
    tilted = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert tilted["reward_parts"].keys() == {"brightness", "symmetry"}
    search = [
        "search",
        export,
        *few,
        *steered,
        "--rounds",
        "1",
        "--keep",
        "2",
        "--judge",
        "colour:rgb=1:0:0",
    ]
    assert fmtt_main([*search, "--out", str(tmp_path / "r")]) == 0
    evaluate = ["evaluate", export, *few, "--num-samples", "2", "--teacher", folder(name)]
    assert fmtt_main([*evaluate, "--out", str(tmp_path / "e")]) == 0
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["reference"] == "teacher"
    capsys.readouterr()
    assert fmtt_main(["sample", export, "--out", str(tmp_path / "x")]) == 2
    assert "with --prompt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_have_the_gradients_of_one(
    name: str, yaml: Path, words: Any, settings: Any, run_python: Callable[..., Any], tmp_path: Path
):
    """On the joined batch of both, for objectives with a derivative that gradients pass by, and through."""
    own = ("max_steps=2", "optimizer.lr=0", "times.diagonal=0")
    ddp = ("trainer.devices=2", "trainer.strategy=ddp")
    done = run_python(PROGRAM, tmp_path, "distill", yaml, *words(name, *own, *ddp), timeout=550)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    module = build_module(settings(name, *own), "distill", SHAPE)
    assert module.teacher is not None
    for step, objective in enumerate(("lmd", "lsd")):
        one, two = (rank["steps"][step] for rank in ranks)
        path = PathSample(*(torch.cat(pair) for pair in zip(one["path"], two["path"], strict=True)))
        times = Times(*(torch.cat(pair) for pair in zip(one["times"], two["times"], strict=True)))
        cond = {key: torch.cat([value, two["cond"][key]]) for key, value in one["cond"].items()}
        assert cond.keys() <= conditions(name, 1).keys() and len(path.x_s) == 4
        assert not torch.equal(one["path"][0], two["path"][0])
        module.student.zero_grad()
        OBJECTIVES[objective](
            module.student, module.teacher.velocity, path, times, cond
        ).per_sample.mean().backward()
        expected = {key: p.grad for key, p in module.student.named_parameters() if p.grad is not None}
        for rank in (one, two):
            assert rank["gradients"].keys() == expected.keys()
            for key, gradient in rank["gradients"].items():
                torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5)
        assert max(float(g.abs().max()) for g in one["gradients"].values()) > 1e-3
