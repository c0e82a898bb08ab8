"""Adversarial fine-tuning: when it takes part, whose steps are counted, how a run continues."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import fmtt
from data.procedural import procedural
from fmtt.errors import UserError
from fmtt.evaluation.distances import directions, sliced_wasserstein
from train.adversarial import Adversarial
from train.build import build_module
from train.checkpoints import checkpoints, read_checkpoint
from train.config import Config
from train.config_adversarial import AdversarialConfig
from train.discriminator import Discriminator
from train.export import export_run
from train.losses import PathSample, Times
from train.optimizer import learning_rate_factor
from train.run import train

PROGRAM = Path(__file__).with_name("adversarial_program.py")
ON = ("adversarial.weight=0.5", "adversarial.args={width: 8, depth: 1}")


def last(config: Config) -> dict[str, Any]:
    return read_checkpoint(checkpoints(Path(config.run_dir) / "checkpoints")[-1][1])


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """Every tensor and number of nested mappings and lists, by where it stands."""
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in flat(value, f"{name}.{key}").items()}
    if isinstance(node, list | tuple):
        return {k: v for i, value in enumerate(node) for k, v in flat(value, f"{name}.{i}").items()}
    return {name: node} if isinstance(node, torch.Tensor | float | int) else {}


def state(config: Config) -> dict[str, Any]:
    kept = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "adversarial", "global_step")
    return flat({key: value for key, value in last(config).items() if key in kept})


def differ(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    return [k for k, v in one.items() if not torch.equal(torch.as_tensor(v), torch.as_tensor(other[k]))]


def test_the_weight_grows_from_the_start_step():
    config = AdversarialConfig(weight=0.8, start_step=5, warmup=3)
    adversarial = Adversarial(Discriminator((2,), "mlp", {"width": 4}), config)
    assert not adversarial.active(4) and adversarial.active(5)
    assert [adversarial.weight(step) for step in (5, 6, 7, 8, 9)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    plain = Adversarial(adversarial.discriminator, AdversarialConfig(weight=0.8))
    assert plain.weight(0) == 0.8


def test_a_run_counts_the_student_s_steps_and_continues_exactly(toy, monkeypatch):
    settings = (*ON, "adversarial.start_step=1", "adversarial.warmup=3", "trainer.accumulate=2")
    fixed = ("evaluate.num_samples=0", "evaluate.grid_samples=0", "max_steps=5", "adversarial.lr=1e-3")
    whole = toy(*settings, *fixed, distill="lmd", run="whole")
    train(whole, "distill")
    content = last(whole)
    assert content["global_step"] == 5
    own = content["adversarial"]["optimizer"]
    assert {int(s["step"]) for s in own["state"].values()} == {
        4
    }  # one for each of the student's, but the first
    o = whole.optimizer
    rate = learning_rate_factor(4, warmup=o.warmup, max_steps=5, decay_share=o.decay_share, final=o.final)
    assert own["param_groups"][0]["lr"] == pytest.approx(1e-3 * rate)
    with open(Path(whole.run_dir) / "metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row["loss"]}
    assert sorted(rows) == list(range(5))
    assert not rows[0]["adversarial/ratio"] and all(rows[k]["adversarial/ratio"] for k in range(1, 5))

    cut = toy(*settings, *fixed, distill="lmd", run="cut")
    step = Adversarial.step

    def fail(self: Adversarial, factor: float) -> float:
        if len(checkpoints(Path(cut.run_dir) / "checkpoints")) == 1:
            monkeypatch.setattr(Adversarial, "step", step)
            raise RuntimeError("power cut")
        return step(self, factor)

    monkeypatch.setattr(Adversarial, "step", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, "distill")
    assert [k for k, _ in checkpoints(Path(cut.run_dir) / "checkpoints")] == [2]
    train(cut, "distill")
    assert differ(state(whole), state(cut)) == []
    cut.adversarial.r1 = 2.0
    with pytest.raises(UserError, match="adversarial.r1 is 2.0, but the run"):
        train(cut, "distill")


def test_without_it_nothing_changes(toy):
    """Bit for bit: also where it would begin later than the run ends."""
    fixed = ("evaluate.num_samples=0", "evaluate.grid_samples=0", "max_steps=3", "weighting.learned=true")
    plain, later = (
        toy(*fixed, distill="lsd"),
        toy(*fixed, *ON, "adversarial.start_step=3", distill="lsd", run="b"),
    )
    train(plain, "distill")
    train(later, "distill")
    assert "adversarial" not in last(plain)
    ours = {k: v for k, v in state(later).items() if not k.startswith(".adversarial")}
    assert differ(state(plain), ours) == []


def test_two_ranks_equal_one_on_the_joined_batch(toy, pretrain_yaml, run_python, tmp_path):
    """Student's gradients, ratio included, and the discriminator after two steps."""
    # The student stands still, its samples and the penalties depend on no draw that a rank makes alone.
    fixed = (
        "max_steps=2",
        "batch_size=8",
        "optimizer.lr=0",
        "optimizer.muon_lr=0",
        "adversarial.from_noise=1",
        "adversarial.lr=1e-2",
    )
    settings = (
        *ON,
        *fixed,
        "adversarial.penalty_step=0",
        "evaluate.num_samples=0",
        "evaluate.grid_samples=0",
    )
    config = toy(*settings, distill="lmd")
    own = (f"run_dir={config.run_dir}", f"teacher={config.teacher}", "objective.name=lmd")
    ddp = ("trainer.devices=2", "trainer.strategy=ddp")
    done = run_python(PROGRAM, tmp_path, "distill", pretrain_yaml, *own, *settings, *ddp)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]

    module = build_module(config, "distill", (2,))
    adversarial, student = module.adversarial, module.student
    assert adversarial is not None
    for step in (0, 1):
        one, two = (rank["steps"][step] for rank in ranks)
        assert not torch.equal(one["path"][2], two["path"][2])
        path = PathSample(*(torch.cat(pair) for pair in zip(one["path"], two["path"], strict=True)))
        times = Times(*(torch.cat(pair) for pair in zip(one["times"], two["times"], strict=True)))
        student.zero_grad()
        objective = module.objective(student, module.velocity(), path, times, None).per_sample.mean()
        loss, logs = adversarial(objective, student, path, times, None, torch.Generator(), step)
        loss.backward()
        half = (PathSample(*one["path"]), Times(*one["times"]))
        own = module.objective(student, module.velocity(), *half, None).per_sample.mean()
        _, alone = copy.deepcopy(adversarial)(own, student, *half, None, torch.Generator(), step)
        assert float(alone["adversarial/ratio"]) != pytest.approx(float(logs["adversarial/ratio"]), rel=0.01)
        adversarial.step(module.rate(step))
        for rank in (one, two):
            for name, parameter in student.named_parameters():
                if parameter.grad is not None:
                    torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6)
    for name, value in adversarial.discriminator.state_dict().items():
        assert torch.equal(ranks[0]["discriminator"][name], ranks[1]["discriminator"][name])
        torch.testing.assert_close(ranks[0]["discriminator"][name], value, rtol=1e-4, atol=1e-5)


def test_labels_reach_the_discriminator(toy):
    labelled = ("data.source=mixture-labelled", "teacher=oracle:mixture-labelled")
    small = ("student.args={width: 8, depth: 1, num_classes: 8}", "evaluate.num_samples=0", "max_steps=2")
    config = toy(*ON, *small, "evaluate.grid_samples=0", distill="lmd")
    config.teacher, config.data.source = labelled[1].partition("=")[2], "mixture-labelled"
    train(config, "distill")
    assert last(config)["adversarial"]["discriminator"]["network.label.weight"].shape == (9, 8)


def test_a_run_starts_from_an_export(toy, tmp_path):
    small = ("max_steps=2", "evaluate.num_samples=0", "evaluate.grid_samples=0")
    export = export_run(train(toy(*small, distill="lmd", run="first"), "distill"), tmp_path / "map")
    module = build_module(toy(*small, *ON, f"student.init={export}", distill="lmd"), "distill", (2,))
    weights = fmtt.load(export).state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in module.student.state_dict().items())
    assert all(p.requires_grad for p in module.student.parameters())
    assert module.student(torch.zeros(1, 2), 0.0, 1.0).requires_grad


def test_a_discriminator_that_diverges_is_named(toy):
    bad = ("adversarial.lr=1e30", "optimizer.warmup=0", "adversarial.r1=0", "adversarial.r2=0")
    with pytest.raises(UserError, match="discriminator.* is not finite at step .*lower adversarial.lr"):
        train(toy(*ON, *bad, "max_steps=6", distill="lmd"), "distill")


@pytest.mark.slow
def test_it_brings_one_jump_from_noise_closer_to_the_data(toy, tmp_path, capsys):
    """Sliced W2 to fresh data, before and after as many steps with and without a discriminator, of a student
    too small for its teacher's map: what it gives up is for the objective to say, or for the judge."""
    off = ("evaluate.num_samples=0", "evaluate.grid_samples=0", "checkpoint.every_steps=1000")
    shared = ("student.args={width: 8, depth: 1}", "batch_size=256", "ema.half_lives=[20]", *off)
    judge = ("adversarial.weight=1", "adversarial.args={width: 64, depth: 2}", "adversarial.lr=2e-3")
    judge += ("adversarial.r1=0.1", "adversarial.r2=0.1", "adversarial.from_noise=1", "adversarial.warmup=20")

    def export(name: str, *settings: str) -> Path:
        config = toy(*shared, *settings, "log.every_steps=100", distill="lmd", run=name)
        config.teacher = "oracle:mixture"
        return export_run(train(config, "distill"), tmp_path / f"{name}-export")

    fresh, other = (procedural("mixture").batch(torch.arange(k, k + 8192), 0).x for k in (10**6, 2 * 10**6))
    lines = directions(2, 64, torch.Generator().manual_seed(0), fresh)

    def distance(path: Path) -> float:
        x = fmtt.sample(fmtt.load(path), 8192, steps=1, generator=torch.Generator().manual_seed(5))
        return float(sliced_wasserstein(x, fresh, lines))

    first = export("first", "max_steps=600", "optimizer.lr=2e-3", "optimizer.muon_lr=0")
    tune = (f"student.init={first}", "max_steps=300", "seed=7", "optimizer.lr=2e-3", "optimizer.muon_lr=0")
    found = {"before": first, "plain": export("plain", *tune), "judged": export("judged", *tune, *judge)}
    far = {name: distance(path) for name, path in found.items()}
    with capsys.disabled():
        floor = float(sliced_wasserstein(other, fresh, lines))
        print(f"\nsliced W2 of one jump: {far}, of data {floor:.4f}")
    assert far["judged"] < 0.85 * min(far["before"], far["plain"])
