"""Toy runs that take a second: a small MLP on a 2-D mixture, and a teacher of random weights for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models import checkpoint
from train.config import Config, load_config
from train.module import FlowMapModule

PRETRAIN = """\
seed: 3
max_steps: 6
batch_size: 16
student: {network: mlp, args: {width: 16, depth: 1}}
objective: {name: flow_matching}
optimizer: {warmup: 2}
ema: {half_lives: [2, 5]}
data: {source: mixture}
checkpoint: {every_steps: 2, keep: 2}
log: {every_steps: 1}
evaluate: {every_steps: 3, num_samples: 4, grid_samples: 2}
trainer: {accelerator: cpu}
"""


def write_teacher(
    folder: Path, shape: tuple[int, ...], network: str, args: dict[str, Any], *, std: float = 0.2
) -> Path:
    """An export with random weights."""
    torch.manual_seed(0)
    net = checkpoint.NETWORKS[network](shape, **args)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    options: dict[str, Any] = {"kind": "velocity", "trained": {}, "metrics": {}, "card": "# Toy"}
    checkpoint.save(
        NeuralFlowMap(net, Linear(), shape), folder, network=network, network_args=args, **options
    )
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of a velocity model of 2-D points."""
    folder = tmp_path_factory.mktemp("teachers") / "points"
    return write_teacher(folder, (2,), "mlp", {"width": 16, "depth": 1})


@pytest.fixture(scope="session")
def clock_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of a velocity model of clocks."""
    folder = tmp_path_factory.mktemp("teachers") / "clock"
    args = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
    return write_teacher(folder, (3, 32, 32), "dit", args, std=0.05)


@pytest.fixture
def pretrain_yaml(tmp_path: Path) -> Path:
    """The file of a toy pretraining run, without run_dir."""
    path = tmp_path / "toy.yaml"
    path.write_text(PRETRAIN)
    return path


@pytest.fixture
def toy(pretrain_yaml: Path, tmp_path: Path, teacher: Path) -> Callable[..., Config]:
    """``toy("max_steps=4", run="a")``: a run in its own folder; ``distill=`` names the objective."""

    def make(*overrides: str, run: str = "run", distill: str = "") -> Config:
        own = [f"run_dir={tmp_path / run}"]
        if distill:
            own += [f"teacher={teacher}", f"objective.name={distill}"]
        return load_config(pretrain_yaml, [*own, *overrides])

    return make


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """``stop_at(step, action)`` calls ``action`` when that training step begins, once."""
    original = FlowMapModule.training_step

    def install(step: int, action: Callable[[], None]) -> None:
        def training_step(self, batch, batch_idx):
            if self.global_step == step:
                monkeypatch.setattr(FlowMapModule, "training_step", original)
                action()
            return original(self, batch, batch_idx)

        monkeypatch.setattr(FlowMapModule, "training_step", training_step)

    return install
