"""Two real processes: the gradients of one on the joined batch, and no draw made twice."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from train.build import build_module
from train.checkpoints import checkpoints, read_checkpoint
from train.losses import OBJECTIVES, PathSample, Times
from train.weighting import time_left_weight

PROGRAM = Path(__file__).with_name("ddp_program.py")
DDP = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")


def test_gradients_equal_one_process_on_the_joined_batch(toy, pretrain_yaml, run_python, tmp_path):
    # A learning rate of 0 keeps the initial weights, at which both steps' gradients are compared.
    still = ("optimizer.lr=0", "optimizer.muon_lr=0")
    settings = ("max_steps=2", "batch_size=8", *still, "objective.time_left_power=1")
    config = toy(*settings, distill="lmd")
    own = (f"run_dir={config.run_dir}", f"teacher={config.teacher}", "objective.name=lmd")
    program = (PROGRAM, tmp_path, "distill", pretrain_yaml)
    done = run_python(*program, *own, *settings, *DDP, "evaluate.every_steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1 and "Traceback" not in done.stderr
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]

    module = build_module(config, "distill", (2,))
    assert module.teacher is not None
    for step, name in enumerate(("lmd", "lsd")):
        one, two = (rank["steps"][step] for rank in ranks)
        for a, b in zip((*one["path"], *one["times"]), (*two["path"], *two["times"]), strict=True):
            assert not torch.equal(a, b)  # points, noise, data and times all differ between ranks
        path = PathSample(*(torch.cat(pair) for pair in zip(one["path"], two["path"], strict=True)))
        times = Times(*(torch.cat(pair) for pair in zip(one["times"], two["times"], strict=True)))
        assert len(path.x_s) == 16
        module.student.zero_grad()
        loss = OBJECTIVES[name](module.student, module.teacher.velocity, path, times).per_sample
        (time_left_weight(times, 1.0) * loss).mean().backward()
        expected = {n: p.grad for n, p in module.student.named_parameters()}
        for rank in (one, two):
            assert rank["gradients"].keys() == expected.keys()
            for key, gradient in rank["gradients"].items():
                torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-7)
        assert max(float(g.abs().max()) for g in one["gradients"].values()) > 1e-3

    # Rank 0 alone evaluates and writes; the ranks stay together.
    assert all(torch.equal(w, ranks[1]["weights"][n]) for n, w in ranks[0]["weights"].items())
    run_dir = Path(config.run_dir)
    assert [step for step, _ in checkpoints(run_dir / "checkpoints")] == [2]
    with open(run_dir / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["lookahead/map_1@0"]] == ["1", "2"]


@pytest.mark.slow
def test_resuming_on_two_processes_is_exact(pretrain_yaml, run_python, teacher, tmp_path):
    def run(name: str, *settings: str, status: int = 0):
        own = (f"run_dir={tmp_path / name}", f"teacher={teacher}", "objective.name=lsd")
        fixed = ("optimizer.decay_share=0", "evaluate.every_steps=2", *DDP)  # else max_steps shapes the rates
        done = run_python("-m", "train", "distill", pretrain_yaml, *own, *fixed, *settings)
        assert done.returncode == status, done.stderr
        return done

    run("whole", "max_steps=6")
    run("cut", "max_steps=4")
    continued = run("cut", "max_steps=6")
    assert continued.stdout.count("continuing from step 4") == 1
    whole, cut = (
        read_checkpoint(tmp_path / name / "checkpoints/step-00000006.ckpt") for name in ("whole", "cut")
    )
    assert all(torch.equal(v, cut["state_dict"][k]) for k, v in whole["state_dict"].items())
    for half_life, average in whole["ema"].items():
        assert all(torch.equal(v, cut["ema"][half_life][k]) for k, v in average.items())
    # What is wrong is said once, and ends both processes.
    bad = run("bad", "max_steps=6", "optimizer.lr=1e30", "optimizer.clip=0", "optimizer.warmup=0", status=2)
    assert "not finite" in bad.stderr and "Traceback" not in bad.stderr
