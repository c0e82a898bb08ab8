"""Every command on a tiny random-weight export, and what each kind of mistake says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fmtt
from fmtt.__main__ import main
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.models import checkpoint
from fmtt.rewards import build

SHAPE = (3, 16, 16)
REWARD = "clock:time=3:47,sharpness=4"


def write_export(
    folder: Path, shape: tuple[int, ...] = SHAPE, *, seed: int = 0, classes: int = 0, path=None
) -> str:
    """A tiny export with random weights, and its path."""
    torch.manual_seed(seed)
    name, args = ("mlp", {}) if len(shape) == 1 else ("dit", {"patch": 8, "dim": 16, "depth": 1, "heads": 2})
    if classes:
        args["num_classes"] = classes
    network = checkpoint.NETWORKS[name](shape, **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    flow_map = NeuralFlowMap(network, path or Linear(), shape)
    trained = {"value_range": [-0.5, 0.5], "steps": 0}
    checkpoint.save(
        flow_map, folder, network=name, network_args=args, trained=trained, metrics={}, card="# Tiny"
    )
    return str(folder)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_export(tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_export(tmp_path_factory.mktemp("exports") / "teacher", seed=1)


def run(*args: str | Path) -> int:
    return main([str(a) for a in args])


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_info(export, capsys):
    assert run("info", export) == 0
    assert "3 × 16 × 16" in capsys.readouterr().out
    assert run("info", export, "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1


def test_info_has_a_line_for_every_number(capsys):
    assert run("info", "clock-map") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("metrics: measured.rmse.map_1 ") and len(line.split()) == 12 for line in lines)
    assert max(map(len, lines)) < 160 and "{" not in "".join(lines)


def test_sample_writes_pictures_and_tensors(export, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert run("sample", export, "--steps", "2", "--num-samples", "5", "--seed", "3", "--out", out) == 0
    assert files(out) == {"samples.png", "samples.safetensors", "summary.json"}
    samples = load_file(out / "samples.safetensors")["samples"]
    again = fmtt.sample(fmtt.load(export), 5, steps=2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(samples, again)
    said = summary(out)
    assert said["command"] == "sample" and said["arguments"]["steps"] == 2 and said["cost"]["passes"] == 10
    printed = capsys.readouterr().out
    assert "samples.png" in printed and str(out) in printed


def test_vectors_are_written_without_a_picture(tmp_path):
    export = write_export(tmp_path / "vectors", (2,))
    assert run("sample", export, "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"samples.safetensors", "summary.json"}
    assert run("evaluate", export, "--num-samples", "4", "--out", tmp_path / "eval") == 0
    assert files(tmp_path / "eval") == {"summary.json", "rmse.png", "report.html"}


def test_class_labels(tmp_path, capsys):
    export = write_export(tmp_path / "classes", (1, 8, 8), classes=3)
    assert run("sample", export, "--label", "2", "--num-samples", "3", "--out", tmp_path / "out") == 0
    for wrong in ((), ("--label", "3")):
        assert run("sample", export, *wrong, "--out", tmp_path / "out") == 2
        assert "give --label from 0 to 2" in capsys.readouterr().err


TILT = ("--reward", REWARD, "--num-particles", "6", "--num-steps", "4")


def test_tilt(export, tmp_path):
    out = tmp_path / "tilt"
    more = ("--num-populations", "2", "--weights", "path", "--guidance", "0.5", "--chunk-size", "5")
    assert run("tilt", export, *TILT, *more, "--seed", "1", "--out", out) == 0
    assert files(out) == {"samples.png", "particles.png", "curves.png", "samples.safetensors", "summary.json"}
    tensors, said = load_file(out / "samples.safetensors"), summary(out)
    assert tensors["samples"].shape == (12, *SHAPE) and tensors["log_weights"].shape == (12,)
    assert len(said["log_z"]) == len(said["ess"]) == 2 and 1 <= said["effective_samples"] <= 12
    assert said["judge"]["target"] == "3:47" and 0 <= said["judge"]["hit_rate"] <= 1
    assert said["cost"]["passes"] > 0 and len(said["history"]["t"]) == 4
    expected = fmtt.tilt(
        fmtt.load(export), build(REWARD), num_particles=6, num_steps=4, num_populations=2, weights="path",
        guidance=0.5, chunk_size=5, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert torch.equal(tensors["samples"], expected.samples)
    assert said["mean_reward"] == pytest.approx(
        float(expected.expect(lambda x: expected.rewards, pool=True).value)
    )


def test_tilt_says_how_many_ancestors_stand_behind_the_ess(export, tmp_path, capsys):
    for more, populations in (((), 1), (("--num-populations", "2"), 2)):
        assert run("tilt", export, *TILT, *more, "--out", tmp_path) == 0
        found = summary(tmp_path)
        (line,) = (text for text in capsys.readouterr().out.splitlines() if text.startswith("ESS"))
        ess = [found["ess"]] if populations == 1 else found["ess"]
        low, high = f"{100 * min(ess):.3g}", f"{100 * max(ess):.3g}"
        assert f"ESS {low}{'' if low == high else f' to {high}'} % of 6 particles" in line
        assert all(f"{n:g}" in line.split("from")[1] for n in found["distinct_ancestors"])
        assert ("in each of 2 populations" in line) == (populations == 2)


def test_tilt_with_a_teacher_and_no_judge(export, teacher, tmp_path):
    out = tmp_path / "tilt"
    more = ("--teacher", teacher, "--judge", "none", "--lookahead", "denoiser", "--noise", "0.5")
    assert run("tilt", export, *TILT, *more, "--out", out) == 0
    assert summary(out)["judge"] is None


def test_paper_weights_warn_in_one_line(export, tmp_path, capsys):
    assert run("tilt", export, *TILT, "--weights", "paper", "--out", tmp_path) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: weights='paper'") and error.count("\n") == 1


def test_without_matplotlib_steering_works_and_evaluation_says_what_is_missing(
    export, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("tilt", export, *TILT, "--out", tmp_path / "tilt") == 0
    assert files(tmp_path / "tilt") == {"samples.png", "samples.safetensors", "summary.json"}
    assert run("evaluate", export, "--out", tmp_path / "evaluate") == 2
    assert "this needs matplotlib: pip install 'fmtt[evaluate]'" in capsys.readouterr().err


def test_search(export, tmp_path):
    out = tmp_path / "search"
    more = ("--num-particles", "6", "--num-steps", "4", "--keep", "2", "--rounds", "2")
    assert run("search", export, "--reward", REWARD, *more, "--out", out) == 0
    assert files(out) == {"samples.png", "particles.png", "samples.safetensors", "summary.json"}
    said, tensors = summary(out), load_file(out / "samples.safetensors")
    assert said["best_reward"] == [pytest.approx(float(tensors["rewards"].max()))]
    assert tensors["best"].shape == (1, *SHAPE) and "history" in said and "cost" in said


def test_evaluate(export, teacher, tmp_path):
    out = tmp_path / "evaluate"
    more = ("--num-samples", "4", "--reward", REWARD, "--gradient-samples", "2")
    assert run("evaluate", export, "--teacher", teacher, *more, "--out", out) == 0
    assert files(out) == {
        "summary.json",
        "report.html",
        "lookahead.png",
        "steps.png",
        "rmse.png",
        "reward.png",
    }
    said = summary(out)
    assert said["reference"] == "teacher" and len(said["lookahead"]["t"]) == 10
    assert set(said["lookahead"]["rmse"]) == {"denoiser", "map_1", "map_2", "map_4"}
    assert all(isinstance(n, int) and 1 <= n <= 64 for n in said["teacher_nfe_matched"].values())
    assert all(-1 <= c <= 1 for values in said["reward"]["cosine"].values() for c in values)
    assert "http" not in (out / "report.html").read_text()


def test_an_export_without_teacher_is_measured_against_itself(export, tmp_path):
    assert run("evaluate", export, "--num-samples", "3", "--out", tmp_path) == 0
    assert summary(tmp_path)["reference"] == "self" and "reward" not in summary(tmp_path)


MISTAKES = [
    ("sample nowhere --out OUT", "there is no export at nowhere"),
    ("sample EXPORT", "--out"),
    ("", "required: COMMAND"),
    ("smaple EXPORT --out OUT", "did you mean 'sample'?"),
    ("contrast EXPORT --out OUT", "there is no command 'contrast'"),
    ("sample EXPORT --num-sample 4 --out OUT", "did you mean '--num-samples'?"),
    ("sample EXPORT --steps 0 --out OUT", "--steps: must be at least 1, got 0"),
    ("sample EXPORT --steps four --out OUT", "'four' is not a whole number"),
    ("sample EXPORT --label 1 --out OUT", "is not class-conditional"),
    ("sample EXPORT --device tpu9 --out OUT", "--device tpu9"),
    ("tilt EXPORT --out OUT", "--reward"),
    ("tilt EXPORT --reward clcok:time=3:47 --out OUT", "did you mean 'clock'"),
    ("tilt EXPORT --reward clock:tiem=3:47 --out OUT", "did you mean 'time'"),
    ("tilt EXPORT --reward clock:time=25:99 --out OUT", "25:99"),
    ("tilt EXPORT --reward clock:sharpness=high --out OUT", "must be a number"),
    ("tilt EXPORT --reward clock --num-particles 0 --out OUT", "--num-particles: must be at least 1, got 0"),
    ("tilt EXPORT --reward clock --weights exat --out OUT", "did you mean 'exact'?"),
    ("tilt EXPORT --reward clock --lookahead map --out OUT", "is not one of flow_map"),
    ("tilt EXPORT --reward clock --ess-threshold 2 --out OUT", "must be between 0 and 1"),
    ("tilt EXPORT --reward clock --noise nan --out OUT", "--noise: must be at least 0"),
    ("tilt EXPORT --reward clock --guidance 2 --out OUT", "weights='path'"),
    ("tilt EXPORT --reward clock --judge clok --out OUT", "did you mean 'clock'?"),
    ("tilt EXPORT --reward clock --max-reward-calls 3 --out OUT", "max_reward_calls=3"),
    ("tilt EXPORT --reward clock --teacher nowhere --out OUT", "there is no export at nowhere"),
    ("search EXPORT --reward clock --num-particles 2 --keep 3 --out OUT", "keep"),
    ("evaluate EXPORT --num-samples 1 --out OUT", "--num-samples: must be at least 2"),
    ("evaluate EXPORT --reward clok --out OUT", "did you mean 'clock'"),
]


@pytest.mark.parametrize("line, says", MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(line, says, export, tmp_path, capsys):
    words = [{"EXPORT": export, "OUT": str(tmp_path / "out")}.get(word, word) for word in line.split()]
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert printed.err.startswith("error: ") and not (tmp_path / "out").exists()


def test_damaged_weights(export, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run("sample", copy, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(weights) in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate", "tilt"])
def test_unwritable_output_is_found_before_any_work(command, export, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    reward = ("--reward", "clock") if command == "tilt" else ()
    assert run(command, export, *reward, "--out", tmp_path / "file" / "out") == 2
    error = capsys.readouterr().err
    assert "cannot write to --out" in error and error.count("\n") == 1


def test_a_reward_that_cannot_read_the_samples(tmp_path, capsys):
    export = write_export(tmp_path / "vectors", (2,))
    assert run("tilt", export, "--reward", "clock", "--out", tmp_path / "out") == 2
    assert "cannot score samples of shape 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape, path, says", [((3, 8, 8), None, "data shape"), (SHAPE, Trigonometric(), "interpolant")]
)
def test_a_teacher_that_does_not_fit(shape, path, says, export, tmp_path, capsys):
    other = write_export(tmp_path / "other", shape, path=path)
    assert run("evaluate", export, "--teacher", other, "--out", tmp_path / "out") == 2
    assert f"has {says}" in capsys.readouterr().err


def test_as_a_module(export, run_python, tmp_path):
    done = run_python("-m", "fmtt", "sample", export, "--num-samples", "2", "--out", tmp_path / "out")
    assert done.returncode == 0 and "wrote" in done.stdout
    failed = run_python("-m", "fmtt", "sample", "nowhere", "--out", tmp_path / "out")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "Traceback" not in failed.stderr


def test_ctrl_c_has_the_shells_status(export, monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fmtt, "sample", interrupted)
    assert run("sample", export, "--out", tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err
