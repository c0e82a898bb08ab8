"""Students that keep their teacher's velocity: built, trained, exported, continued, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fmtt
import train.export
from fmtt.errors import UserError
from fmtt.models.anchored_dit import AnchoredDiT
from tests.train.conftest import write_teacher
from train.__main__ import main
from train.build import build_module
from train.demo import measure
from train.export import export_run, rebuild
from train.optimizer import split_parameters
from train.run import train as run_training

CLOCKS = ("data.source=clock", "student.anchored=true", "objective.name=trajectory", "max_steps=2")
SMALL = ("batch_size=2", "evaluate.num_samples=2", "evaluate.grid_samples=0", "optimizer.lr=0.01")


@pytest.fixture
def run_dir(toy, clock_teacher) -> Path:
    return run_training(toy(*CLOCKS, *SMALL, f"teacher={clock_teacher}"), "distill")


def test_a_trained_student_has_its_teachers_velocity(run_dir, clock_teacher, tmp_path):
    teacher, flow_map = fmtt.load(clock_teacher), fmtt.load(export_run(run_dir, tmp_path / "map"))
    assert flow_map.config["network"] == {"name": "anchored_dit", "args": teacher.config["network"]["args"]}
    x, s = torch.randn(3, 3, 32, 32), torch.rand(3)
    assert torch.equal(flow_map.velocity(x, s), teacher.velocity(x, s))
    assert not torch.equal(flow_map(x, s, 1.0), teacher(x, s, 1.0))
    before, own = teacher.network.state_dict(), flow_map.network.get_submodule("own").state_dict()
    for name in ("blocks.0.qkv.weight", "final.weight", "second_time.out.weight"):
        assert not torch.equal(own[name], before[name])


def test_an_export_is_trained_further(run_dir, toy, clock_teacher, tmp_path):
    """Without being asked to, it stays anchored."""
    first = export_run(run_dir, tmp_path / "map")
    settings = (
        *CLOCKS,
        *SMALL,
        f"teacher={clock_teacher}",
        f"student.init={first}",
        "student.anchored=false",
    )
    again = fmtt.load(export_run(run_training(toy(*settings, run="on"), "distill"), tmp_path / "again"))
    before, after = fmtt.load(first).network.state_dict(), again.network.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"own"}


def test_the_anchor_is_the_teacher_whatever_the_first_weights(run_dir, toy, clock_teacher, tmp_path):
    first = export_run(run_dir, tmp_path / "map", half=True)
    other = write_teacher(
        tmp_path / "other", (3, 32, 32), "dit", fmtt.load(clock_teacher).config["network"]["args"]
    )
    x, s = torch.randn(3, 3, 32, 32), torch.rand(3)
    for teacher in (clock_teacher, other):
        config = toy(*CLOCKS, f"teacher={teacher}", f"student.init={first}", "student.anchored=false")
        student = build_module(config, "distill", (3, 32, 32)).student
        assert torch.equal(student.velocity(x, s), fmtt.load(teacher).velocity(x, s))


def test_an_anchored_map_teaches_with_its_anchor(run_dir, toy, clock_teacher, tmp_path):
    teacher = export_run(run_dir, tmp_path / "map")
    student = build_module(toy(*CLOCKS, f"teacher={teacher}"), "distill", (3, 32, 32)).student
    x, s = torch.randn(3, 3, 32, 32), torch.rand(3)
    assert torch.equal(student.velocity(x, s), fmtt.load(clock_teacher).velocity(x, s))


@pytest.mark.parametrize("objective", ["lmd", "emd"])
def test_derivatives_hold_on_the_diagonal_too(objective, toy, clock_teacher):
    """The check before the first step compares them with differences across s = t."""
    settings = (f"objective.name={objective}", "times.diagonal=0.5", "batch_size=8", "optimizer.lr=1e-4")
    assert run_training(toy(*CLOCKS, *SMALL, *settings, f"teacher={clock_teacher}"), "distill").is_dir()


def test_a_discriminator_has_no_anchor(toy, clock_teacher):
    config = toy(*CLOCKS, f"teacher={clock_teacher}", "adversarial.weight=0.1")
    adversarial = build_module(config, "distill", (3, 32, 32)).adversarial
    assert adversarial is not None
    assert not any(isinstance(part, AnchoredDiT) for part in adversarial.discriminator.modules())


def test_muon_trains_its_matrices(toy, clock_teacher):
    module = build_module(toy(*CLOCKS, f"teacher={clock_teacher}"), "distill", (3, 32, 32))
    matrices, others = split_parameters(module.student)
    names = {id(p): name for name, p in module.student.named_parameters()}
    assert {names[id(p)].rsplit(".", 2)[1] for p in matrices} == {"qkv", "proj", "up", "down"}
    assert not any(names[id(p)].startswith("network.anchor.") for p in [*matrices, *others])


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["student.init=scratch"], "and student.init: teacher or the export of a map alike"),
        (["student.anchored=false", "student.network=anchored_dit"], "set student.anchored=true"),
        (["student.network=anchored_dit"], "leave it out"),
        (["guidance.scale=[1, 3]"], "guidance.scale: an anchored student has its teacher's velocity"),
        (
            ["guidance.method=autoguidance", "guidance.weak=clock-teacher"],
            "teacher's velocity, unguided",
        ),
        (
            ["teacher=oracle:mixture", "data.source=mixture"],
            "needs distill, a teacher that is the export of a dit",
        ),
        (
            [
                "teacher=self",
                "objective.name=''",
                "objective.terms={lsd: 1, flow_matching: 1}",
                "times.diagonal=0.5",
            ],
            "needs distill, a teacher",
        ),
        (["student.init=clock-map"], "an anchored student must be like its teacher"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_anchored(overrides, says, toy, clock_teacher):
    config = toy(*CLOCKS, f"teacher={clock_teacher}", *overrides)
    with pytest.raises(UserError) as caught:
        build_module(config, "distill", (2,) if "teacher=oracle:mixture" in overrides else (3, 32, 32))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_mlp_is_no_anchor(toy, teacher):
    with pytest.raises(UserError, match="exports of a dit"):
        config = toy("student.anchored=true", f"teacher={teacher}", "objective.name=lsd")
        build_module(config, "distill", (2,))


def test_half_the_digits_take_half_the_room(run_dir, tmp_path, capsys):
    folder = {name: tmp_path / name for name in ("whole", "half")}
    assert main(["export", str(run_dir), str(folder["whole"])]) == 0
    assert main(["export", str(run_dir), str(folder["half"]), "--half"]) == 0
    size = {name: (path / "model.safetensors").stat().st_size for name, path in folder.items()}
    assert size["half"] < 0.6 * size["whole"]
    stored = load_file(folder["half"] / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    whole, half = fmtt.load(folder["whole"]), fmtt.load(folder["half"])
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    x, s, t = torch.randn(4, 3, 32, 32), torch.rand(4) / 2, 0.5 + torch.rand(4) / 2
    error = half(x, s, t) - whole(x, s, t)
    assert 0 < error.norm() < 1e-2 * whole(x, s, t).norm()
    assert "stored in half precision" in (folder["half"] / "README.md").read_text()


def test_what_half_precision_cannot_hold_is_said(run_dir, tmp_path, capsys, monkeypatch):
    def loud(content, half_life):
        student = rebuild(content, half_life)
        next(student.parameters()).data.fill_(1e6)
        return student

    monkeypatch.setattr(train.export, "rebuild", loud)
    assert main(["export", str(run_dir), str(tmp_path / "out"), "--half"]) == 2
    assert "values that float16 cannot hold" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_export_that_is_measured_keeps_its_digits(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "map_quality", lambda *_: {"rmse": 0.5})
    for options in ([], ["--half"]):
        assert main(["export", str(run_dir), str(tmp_path / "out"), *options]) == 0
        before = (tmp_path / "out" / "model.safetensors").read_bytes()
        measure.measure(tmp_path / "out")
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
        assert "| rmse | 0.5 |" in (tmp_path / "out" / "README.md").read_text()
