"""A run folder: what it holds, how a run continues, what stops it."""

from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fmtt.errors import UserError
from train.checkpoints import checkpoints, read_checkpoint
from train.config import Config
from train.module import FlowMapModule
from train.run import train


def last(config: Config) -> dict:
    """The content of a run's newest checkpoint."""
    return read_checkpoint(checkpoints(Path(config.run_dir) / "checkpoints")[-1][1])


def flat(content: dict) -> dict[str, torch.Tensor]:
    """Weights, averages and the optimizers' moments by name."""
    tensors = {f"weights.{k}": v for k, v in content["state_dict"].items()}
    tensors |= {f"ema.{h}.{k}": v for h, average in content["ema"].items() for k, v in average.items()}
    for i, part in enumerate(content["optimizer_states"][0]["parts"]):
        for j, state in part["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{k}": v for k, v in state.items() if torch.is_tensor(v)}
    return tensors


def assert_same(one: Config, other: Config) -> None:
    a, b = flat(last(one)), flat(last(other))
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def rows(config: Config) -> list[dict[str, str]]:
    with open(Path(config.run_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def fail() -> None:
    raise RuntimeError("power cut")


def test_a_run_folder_of_images(toy, clock_teacher):
    small = ("batch_size=4", "evaluate.num_samples=2")
    config = toy("data.source=clock", f"teacher={clock_teacher}", *small, distill="lmd")
    run_dir = train(config, "distill")
    assert OmegaConf.load(run_dir / "config.yaml") == OmegaConf.structured(config)
    assert [step for step, _ in checkpoints(run_dir / "checkpoints")] == [4, 6]
    assert {p.name for p in (run_dir / "samples").iterdir()} == {"step-00000003.png", "step-00000006.png"}
    table = rows(config)
    assert [int(row["step"]) for row in table if row["loss"]] == list(range(6))
    measured = [int(row["step"]) for row in table if row["lookahead/map_1@0"]]
    assert measured == [2, 3, 4, 6] and float(table[-1]["lookahead/denoiser@0.2"]) > 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["metrics"]["grad_norm"] > 0
    assert not [p for p in run_dir.rglob("*") if p.name.endswith(".tmp") or p.name == "lightning_logs"]


def test_the_teacher_is_neither_saved_nor_moved(toy, teacher):
    before = {p.name: p.read_bytes() for p in teacher.iterdir()}
    config = toy("max_steps=2", distill="lsd")
    train(config, "distill")
    assert all(name.startswith("student.") for name in last(config)["state_dict"])
    assert {p.name: p.read_bytes() for p in teacher.iterdir()} == before


@pytest.mark.parametrize("objective", ["", "lsd"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_is_exact(objective, accumulate, toy, stop_at):
    stage = "distill" if objective else "pretrain"
    extra = f"trainer.accumulate={accumulate}"
    whole, cut = toy(extra, run="whole", distill=objective), toy(extra, run="cut", distill=objective)
    train(whole, stage)
    stop_at(5, fail)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, stage)
    assert [step for step, _ in checkpoints(Path(cut.run_dir) / "checkpoints")] == [2, 4]
    train(cut, stage)
    assert_same(whole, cut)
    assert [row["step"] for row in rows(cut)] == [row["step"] for row in rows(whole)]
    assert [row["loss"] for row in rows(cut)] == [row["loss"] for row in rows(whole)]


def test_a_run_that_continues_is_measured_under_the_same_conditions(toy, stop_at):
    """Look-ahead errors of a labelled model, at steps before and after the break."""
    of = (
        "data.source=mixture-labelled",
        "student.args.num_classes=8",
        "max_steps=4",
        "evaluate.every_steps=1",
    )
    labelled = (*of, "teacher=oracle:mixture-labelled", "objective.name=lmd")
    whole, cut = toy(*labelled, run="whole"), toy(*labelled, run="cut")
    train(whole, "distill")
    stop_at(3, fail)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, "distill")
    train(cut, "distill")
    assert_same(whole, cut)
    names = [name for name in rows(whole)[-1] if name.startswith("lookahead")]
    table = [[[row[name] for name in names] for row in rows(config)] for config in (whole, cut)]
    assert len(names) == 12 and table[0] == table[1] and table[0][-1][0]


def test_killed_and_started_again(toy, pretrain_yaml, run_python, tmp_path):
    """SIGKILL past a checkpoint, in a process of its own."""
    whole, cut = toy(run="whole"), toy(run="cut")
    train(whole, "pretrain")
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\nfrom train.module import FlowMapModule\nfrom train.__main__ import main\n"
        "original = FlowMapModule.training_step\n"
        "def step(self, batch, batch_idx):\n"
        "    if self.global_step == 3:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(self, batch, batch_idx)\n"
        "FlowMapModule.training_step = step\nsys.exit(main(sys.argv[1:]))\n"
    )
    done = run_python(script, "pretrain", pretrain_yaml, f"run_dir={cut.run_dir}")
    assert done.returncode == -signal.SIGKILL
    assert [step for step, _ in checkpoints(Path(cut.run_dir) / "checkpoints")] == [2]
    assert [row["step"] for row in rows(cut)][:2] == ["0", "1"]  # metrics reach the disk with the checkpoint
    train(cut, "pretrain")
    assert_same(whole, cut)


def test_a_finished_run_returns_at_once(toy, monkeypatch, capsys):
    config = toy("max_steps=2")
    run_dir = train(config, "pretrain")
    (run_dir / "summary.json").unlink()
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    monkeypatch.setattr(FlowMapModule, "training_step", lambda *a: fail())
    train(config, "pretrain")
    assert "already trained for 2 steps" in capsys.readouterr().out
    assert (run_dir / "summary.json").is_file() and all(p.read_bytes() == was for p, was in before.items())


def test_a_run_can_be_made_longer(toy):
    train(toy("max_steps=2"), "pretrain")
    train(toy("max_steps=4"), "pretrain")
    assert last(toy())["global_step"] == 4
    assert [row["step"] for row in rows(toy()) if row["loss"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "change, names",
    [
        ("seed=4", "seed is 4, but the run in"),
        ("batch_size=8", "batch_size"),
        ("teacher=TEACHER/", "teacher"),
        ("optimizer.lr=0.5", "optimizer.lr is 0.5"),
        ("times.diagonal=0.5", "times.diagonal"),
        ("ema.half_lives=[9]", "ema.half_lives"),
        ("objective.name=lmd", "objective.name is lmd"),
        ("trainer.accumulate=2", "trainer.accumulate"),
        ("data.source=checkerboard", "data.source"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(change, names, toy, teacher):
    train(toy("max_steps=2", distill="lsd"), "distill")
    changed = toy("max_steps=4", change.replace("TEACHER", str(teacher)), distill="lsd")
    if change.startswith("objective"):
        changed.objective.name = "lmd"
    with pytest.raises(UserError) as caught:
        train(changed, "distill")
    assert names in str(caught.value) and "another run_dir" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_checkpoint_is_passed_over(damage, toy):
    whole, config = toy(run="whole"), toy()
    train(whole, "pretrain")
    train(toy("max_steps=4"), "pretrain")
    newest = checkpoints(Path(config.run_dir) / "checkpoints")[-1][1]
    if damage == "foreign":
        torch.save({"state_dict": {}}, newest)
    else:
        newest.write_bytes(newest.read_bytes()[:1000] if damage == "truncated" else b"")
    # The learning rate's decay is planned for max_steps, so the shorter run's last steps differ.
    with pytest.warns(UserWarning, match="passing over the damaged checkpoint .*step-00000004"):
        train(config, "pretrain")
    assert last(config)["global_step"] == 6
    assert [step for step, _ in checkpoints(newest.parent)] == [4, 6]


def test_a_damaged_newer_checkpoint_does_not_displace_a_good_one(toy):
    train(toy("max_steps=2", "checkpoint.keep=1"), "pretrain")
    folder = Path(toy().run_dir) / "checkpoints"
    (folder / "step-00000090.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        train(toy("max_steps=4", "checkpoint.keep=1"), "pretrain")
    assert [step for step, _ in checkpoints(folder)] == [4, 90]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(toy, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="No space left on device; going on without the checkpoint"):
        run_dir = train(toy("max_steps=2"), "pretrain")
    assert (run_dir / "summary.json").is_file() and not list((run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(where, toy, stop_at):
    config = toy()
    good = toy(run="good")
    train(good, "pretrain")

    def spoil() -> None:
        frame = sys._getframe(1)
        student = frame.f_locals["self"].student
        first = next(student.parameters())
        if where == "loss":
            first.data.fill_(float("nan"))
        else:
            first.register_hook(lambda g: g * float("inf"))

    stop_at(3, spoil)
    said = f"the {where} is not finite at step 3.*earlier checkpoints are intact"
    with pytest.raises(UserError, match=said):
        train(config, "pretrain")
    assert last(config)["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in flat(last(config)).values())
    train(config, "pretrain")
    assert_same(config, good)


def test_wandb_offline(toy):
    for steps in (2, 4):
        run_dir = train(toy(f"max_steps={steps}", "log.wandb=true"), "pretrain")
    name = (run_dir / "wandb_id").read_text()
    folders = [p.name for p in (run_dir / "wandb").iterdir() if p.name.startswith("offline-run")]
    assert len(folders) >= 1 and all(folder.endswith(name) for folder in folders)
    assert list((run_dir / "wandb").glob(f"offline-run-*/run-{name}.wandb"))


@pytest.mark.parametrize(
    "source, classes, says",
    [
        ("mixture-labelled", 8, None),
        ("mixture-labelled", 4, "has label 7"),
        ("mixture", 8, "has no labels"),
    ],
)
def test_class_conditional(source, classes, says, toy):
    config = toy(f"data.source={source}", f"student.args.num_classes={classes}", "max_steps=3")
    if says is None:
        train(config, "pretrain")
    else:
        with pytest.raises(UserError, match=says):
            train(config, "pretrain")
        assert not Path(config.run_dir).exists()
