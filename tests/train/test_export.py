"""From a run to an export: the averaged weights, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import fmtt
from fmtt.errors import UserError
from train.__main__ import main
from train.checkpoints import checkpoints, read_checkpoint
from train.export import check_export, export_run
from train.run import train


@pytest.fixture
def run_dir(toy) -> Path:
    return train(toy("max_steps=3", distill="lsd"), "distill")


def test_the_export_is_the_average(run_dir, tmp_path, capsys):
    assert main(["export", str(run_dir), str(tmp_path / "out")]) == 0
    assert "wrote" in capsys.readouterr().out
    flow_map = fmtt.load(tmp_path / "out")
    content = read_checkpoint(checkpoints(run_dir / "checkpoints")[-1][1])
    average = content["ema"]["2"]
    assert all(torch.equal(value, average[name]) for name, value in flow_map.named_parameters())
    raw = content["state_dict"]
    assert any(not torch.equal(value, raw[f"student.{name}"]) for name, value in flow_map.named_parameters())
    assert flow_map.config["kind"] == "flow_map"
    trained = flow_map.config["trained"]
    assert trained["steps"] == 3 and trained["ema_half_life"] == 2 and trained["objective"]["name"] == "lsd"
    assert flow_map.config["metrics"]["lookahead/map_1@0"] > 0
    assert "| seed | 3 |" in (tmp_path / "out" / "README.md").read_text()
    assert fmtt.sample(flow_map, 5, steps=2).shape == (5, 2)


def test_the_card_names_every_source_of_a_mixture(toy, tmp_path):
    sources = "data.sources=[{source: mixture, weight: 1}, {source: checkerboard, weight: 3}]"
    folder = export_run(train(toy("max_steps=1", sources), "pretrain"), tmp_path / "out")
    named = "mixture (weight 1), checkerboard (weight 3)"
    assert f"| data | {named} |" in (folder / "README.md").read_text()
    assert fmtt.load(folder).config["trained"]["data"] == named


def test_a_velocity_model_teaches_a_flow_map(toy, tmp_path):
    pretrained = train(toy("max_steps=2", run="velocity"), "pretrain")
    teacher = export_run(pretrained, tmp_path / "teacher")
    assert fmtt.load(teacher).config["kind"] == "velocity"
    x, s = torch.randn(3, 2), torch.rand(3)
    loaded = fmtt.load(teacher)
    assert torch.equal(loaded.average_velocity(x, s, s), loaded.average_velocity(x, s, torch.ones(3)))
    assert fmtt.load(teacher).config["trained"]["init"] == "random weights"
    ignored = train(toy("max_steps=1", f"teacher={teacher}", run="alone"), "pretrain")
    assert fmtt.load(export_run(ignored, tmp_path / "own")).config["trained"]["init"] == "random weights"
    mapped = train(toy("max_steps=2", f"teacher={teacher}", distill="lmd"), "distill")
    trained = fmtt.load(export_run(mapped, tmp_path / "map")).config["trained"]
    assert (trained["teacher"], trained["init"]) == ("teacher", "teacher")
    options = ["max_steps=1", f"teacher={teacher}", f"student.init={tmp_path / 'map'}"]
    longer = export_run(train(toy(*options, distill="lmd", run="longer"), "distill"), tmp_path / "out")
    assert "| started from | map |" in (longer / "README.md").read_text()


def test_any_of_the_averages_is_exported(toy, tmp_path, capsys):
    run_dir = train(toy("max_steps=4", "ema.half_lives=[2, 0.5]"), "pretrain")
    averages = read_checkpoint(checkpoints(run_dir / "checkpoints")[-1][1])["ema"]
    for option, half_life in ([], "2"), (["--half-life", "0.5"], "0.5"), (["--half-life", "2.0"], "2"):
        assert main(["export", str(run_dir), str(tmp_path / "out"), *option]) == 0
        flow_map = fmtt.load(tmp_path / "out")
        exported = dict(flow_map.named_parameters())
        assert all(torch.equal(exported[name], value) for name, value in averages[half_life].items())
        assert flow_map.config["trained"]["ema_half_life"] == float(half_life)
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"| weights | average with half-life {half_life} steps |" in card
        assert "| metric during training, look-ahead of the average with half-life 2 |" in card
    assert main(["export", str(run_dir), str(tmp_path / "none"), "--half-life", "3"]) == 2
    assert capsys.readouterr().err == "error: --half-life 3: the run's ema.half_lives are 2, 0.5\n"
    assert not (tmp_path / "none").exists()


def test_the_batch_is_that_of_a_step(toy, tmp_path):
    step = ["batch_size=16", "trainer.accumulate=3"]
    folder = export_run(train(toy("max_steps=2", *step), "pretrain"), tmp_path / "out")
    assert "| steps x batch | 2 of 2 x 48 |" in (folder / "README.md").read_text()
    assert fmtt.load(folder).config["trained"]["batch_size"] == 48


def test_another_models_export_is_not_replaced(toy, tmp_path, capsys):
    """One of the same kind, network, data and teacher is: the run went on, or has another seed."""
    velocity = train(toy("max_steps=1", run="velocity"), "pretrain")
    teacher = export_run(velocity, tmp_path / "teacher")
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    mapped = train(toy("max_steps=1", f"teacher={teacher}", distill="lmd"), "distill")
    assert main(["export", str(mapped), str(teacher)]) == 2
    error = capsys.readouterr().err
    assert "holds another model's export (kind velocity, here flow_map)" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in teacher.iterdir()} == before
    assert main(["export", str(velocity), str(teacher)]) == 0


@pytest.mark.parametrize(
    "break_it, says",
    [
        (lambda run: shutil.rmtree(run), "is not there: give the run_dir"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no readable checkpoint"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml is missing or damaged"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml is missing or damaged"),
    ],
    ids=["no run", "no checkpoint", "no config", "damaged config"],
)
def test_what_cannot_be_exported(break_it, says, run_dir, tmp_path, capsys):
    capsys.readouterr()
    break_it(run_dir)
    assert main(["export", str(run_dir), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_unwritable_export(run_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export", str(run_dir), str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_export_that_differs_is_refused(run_dir, tmp_path):
    export_run(run_dir, tmp_path / "out")
    student = fmtt.load(tmp_path / "out")
    check_export(student, tmp_path / "out")
    next(student.parameters()).data.add_(1e-3)
    with pytest.raises(UserError, match="does not reproduce"):
        check_export(student, tmp_path / "out")
