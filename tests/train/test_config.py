"""Configurations: what is refused and in which words, and that every shipped file builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmtt.errors import UserError
from fmtt.models.diffusers.pretrained import FAMILIES
from fmtt.rewards import clock
from train.build import build_module
from train.config import Config, load_config, to_yaml

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = tuple(FAMILIES)  # built in tests/train/diffusers
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name not in PIPELINES)

MISTAKES = [
    (["max_step=3"], "unknown key 'max_step'; did you mean 'max_steps'"),
    (["optimizer.lrr=3"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'"),
    (["zzz.qqq=3"], "the command line: unknown key 'zzz'"),
    (["max_steps=many"], "the command line: max_steps: "),
    (["max_steps=1.5"], "max_steps"),
    (["seed.x=1"], "the command line: "),
    (["optimizer=3"], "the command line: optimizer must be a mapping"),
    (["run_dir="], "run_dir"),
    (["run_dir=${nowhere}"], "nowhere"),
    (["max_steps"], "override 'max_steps' is not of the form key=value"),
    (["=3"], "is not of the form key=value"),
    (["ema.half_lives=3"], "the command line: ema.half_lives must be a list, in brackets"),
    (["ema.half_lives=[1,"], "the command line is not valid YAML"),
    (["max_steps=0"], "max_steps must be at least 1, got 0"),
    (["batch_size=-1"], "batch_size must be at least 1"),
    (["trainer.devices=0"], "trainer.devices must be at least 1"),
    (["checkpoint.keep=0"], "checkpoint.keep must be at least 1"),
    (["seed=-1"], "seed must lie in"),
    (["times.diagonal=1.5"], "times.diagonal must lie in [0, 1], got 1.5"),
    (
        ["times.diagonal=0.6", "times.endpoint=0.6"],
        "times.diagonal + times.endpoint + times.whole must lie in",
    ),
    (["times.std=-1"], "times.std must lie in"),
    (["optimizer.lr=-1"], "optimizer.lr must be at least 0, got -1"),
    (["optimizer.lr=.nan"], "optimizer.lr must be at least 0, got nan"),
    (["optimizer.betas=[0.9]"], "optimizer.betas must be two numbers in [0, 1)"),
    (["optimizer.final=2"], "optimizer.final must lie in [0, 1]"),
    (["optimizer.clip=-1"], "optimizer.clip must be at least 0"),
    (["data.value_range=[1,-1]"], "data.value_range must be [low, high]"),
    (["data.value_range=[1]"], "data.value_range must be [low, high]"),
    (["ema.half_lives=[]"], "ema.half_lives"),
    (["ema.half_lives=[5,5.0]"], "ema.half_lives holds a value twice"),
    (["evaluate.num_samples=-1"], "evaluate.num_samples must be at least 0"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: runs/x\n")
    return path


@pytest.mark.parametrize("overrides, says", MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_a_mistake_is_named_in_one_line(overrides, says, file):
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "does not exist"),
        ("run_dir: [1, 2\n", "is not valid YAML"),
        ("run_dir: a\nrun_dir: b\n", "is not valid YAML"),
        ("- 1\n- 2\n", "mapping of keys to values"),
        ("just words", "unknown key 'just words'"),
        ("run_dir: x\nema: 5\n", "ema must be a mapping"),
        ("", "has no run_dir"),
        ("seed: 3\n", "has no run_dir"),
        ("run_dir: x\noptimiser: {lr: 1}\n", "did you mean 'optimizer'"),
        (b"run_dir: \xff\xfe\n", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(content, says, tmp_path):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    assert says in message and str(path) in message and "\n" not in message


def test_overrides_win_over_the_file_and_the_file_over_defaults(file):
    file.write_text("run_dir: runs/x\nseed: 4\noptimizer: {lr: 0.5, warmup: 7}\n")
    config = load_config(file, ["optimizer.lr=0.25", "student.args.dim=64", "ema.half_lives=[3,9]"])
    assert isinstance(config, Config) and config.seed == 4 and config.max_steps == Config().max_steps
    assert (config.optimizer.lr, config.optimizer.warmup) == (0.25, 7)
    assert config.student.args == {"dim": 64} and config.ema.half_lives == [3.0, 9.0]


def test_an_objective_on_the_command_line_takes_the_place_of_the_files():
    board = ROOT / "configs" / "checkerboard" / "lsd.yaml"
    terms = {"lmd": 1.0, "flow_matching": 2.0}
    assert load_config(board, ["objective.terms={lmd: 1.0, flow_matching: 2.0}"]).objective.weights() == terms
    assert load_config(board, ["objective.name=mean_flow"]).objective.weights() == {"mean_flow": 1.0}
    assert load_config(board, ["objective={name: psd}"]).objective.weights() == {"psd": 1.0}
    assert load_config(board, ["objective.terms.lsd=3"]).objective.weights()["lsd"] == 3.0
    named = ROOT / "configs" / "clock" / "demo.yaml"
    assert load_config(named, ["objective.terms={lsd: 1.0, diagonal: 0.5}"]).objective.weights() == {
        "lsd": 1.0,
        "diagonal": 0.5,
    }
    assert load_config(named, ["objective.terms={}"]).objective.weights() == {"trajectory": 1.0}


def test_what_is_written_reads_back(file, tmp_path):
    config = load_config(file, ["seed=9", "student.args.dim=64"])
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config


@pytest.mark.parametrize("path", CONFIGS, ids=[str(p.relative_to(ROOT)) for p in CONFIGS])
def test_every_shipped_config_builds(path, clock_teacher):
    config = load_config(path)
    stage = "pretrain" if config.objective.name == "flow_matching" else "distill"
    if stage == "distill":
        config.teacher = str(clock_teacher)
    if config.student.init.startswith("runs/"):  # what another configuration trains first
        config.student.init = "teacher"
    module = build_module(config, stage, clock.DATA_SHAPE)
    assert module.student.data_shape == clock.DATA_SHAPE
    assert config.run_dir.startswith("runs/")


BUILD_MISTAKES = [
    ("distill", ["objective.name=lds"], "objective.name: 'lds' is not one of"),
    ("distill", ["objective.name=flow_matching"], "is not an objective of distill"),
    ("pretrain", ["objective.name=lsd"], "is not an objective of pretrain"),
    ("distill", ["teacher=''"], "teacher: give the export"),
    ("distill", ["teacher=/nowhere"], "there is no export at /nowhere"),
    ("distill", ["student.init=techer"], "did you mean 'teacher'"),
    ("distill", ["student.init=scratch", "student.interpolant=trigonometric"], "the teacher's"),
    ("distill", ["objective.name=psd"], "times.diagonal must be positive for psd"),
    ("distill", ["times.distribution=normal"], "times.distribution: 'normal'"),
    ("distill", ["times.whole=0.5"], "times.whole is for objective.name=trajectory"),
    ("pretrain", ["times.whole=0.5"], "times.whole is for objective.name=trajectory"),
    (
        "distill",
        ["objective.name=trajectory", "times.whole=0.5", "times.gap_start=0.5", "times.gap_steps=9"],
        "times.gap_start must be 1 with times.whole",
    ),
    ("distill", ["objective.name=trajectory", "times.whole=0.5"], "times.midpoint must be uniform with"),
    ("distill", ["times.midpoint=center"], "times.midpoint: 'center'"),
    ("pretrain", ["student.network=unet"], "student.network: 'unet' is not one of"),
    ("pretrain", ["student.interpolant=liner"], "did you mean 'linear'"),
    ("pretrain", ["student.prediction=noise"], "student.prediction"),
    ("pretrain", ["student.args.widht=3"], "student.args: 'widht' is not one of"),
    ("pretrain", ["student.args.width=wide"], "student.args.width must be an integer, got 'wide'"),
    ("pretrain", ["student.args.width=16.0"], "student.args.width must be an integer, got 16.0"),
    ("pretrain", ["student.args.depth=true"], "student.args.depth must be an integer, got True"),
    ("pretrain", ["student.args.guidance=1"], "student.args.guidance must be true or false, got 1"),
    ("pretrain", ["student.args.max_frequency=high"], "student.args.max_frequency must be a number, got"),
    ("pretrain", ["student.args.width=0"], "student.args: "),
    ("pretrain", ["student.network=dit"], "student.args: "),
]


@pytest.mark.parametrize(
    "stage, overrides, says",
    BUILD_MISTAKES,
    ids=[" ".join(o) for _, o, _ in BUILD_MISTAKES],
)
def test_what_cannot_be_built_is_named(stage, overrides, says, toy):
    config = toy(*overrides, distill="" if stage == "pretrain" else "lsd")
    with pytest.raises(UserError) as caught:
        build_module(config, stage, (2,))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_teacher_for_other_data(toy):
    with pytest.raises(UserError, match=r"teacher: .* is for samples of shape \(2,\).* have \(3,\)"):
        build_module(toy(distill="lsd"), "distill", (3,))


def test_a_patch_that_does_not_fit(toy):
    config = toy("student.network=dit", "student.args={patch: 0}")
    with pytest.raises(UserError, match="student.args"):
        build_module(config, "pretrain", (3, 32, 32))
