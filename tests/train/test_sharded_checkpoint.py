"""Checkpoints in pieces, on one process: damage, a full disk, resuming, export, going on as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from fmtt import load
from fmtt.errors import UserError
from train import sharded_checkpoint
from train.checkpoints import check, checkpoints, read_checkpoint
from train.config import Config
from train.export import export_run
from train.run import train

SHARDED = "trainer.strategy=fsdp"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Take back what a process group of one leaves behind."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def folder(config: Config) -> Path:
    return Path(config.run_dir) / "checkpoints"


def leaves(content: dict[str, Any]) -> dict[str, Any]:
    """Weights, averages and the optimizers' states by name."""
    found: dict[str, Any] = {}
    keys = ("state_dict", "ema", "optimizer_states")
    sharded_checkpoint.walk(
        {key: content[key] for key in keys}, lambda name, leaf: found.update({name: leaf})
    )
    return {name: leaf for name, leaf in found.items() if torch.is_tensor(leaf)}


def assert_same(one: Config, other: Config, tolerance: float = 0.0) -> None:
    """The newest checkpoints of two runs; without a tolerance bit for bit."""
    a, b = (read_checkpoint(checkpoints(folder(c))[-1][1]) for c in (one, other))
    assert a["global_step"] == b["global_step"] == 6
    found, expected = leaves(a), leaves(b)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def test_a_run_in_pieces(toy, capsys):
    """Its folder; falling back from damage, bit for bit; the export."""
    plain, whole, config = toy(run="plain"), toy(SHARDED, run="whole"), toy(SHARDED)
    for one in (plain, whole, config):
        train(one, "pretrain")
    assert_same(whole, config)
    assert_same(whole, plain, 1e-5)
    kept = checkpoints(folder(config))
    assert [step for step, _ in kept] == [4, 6] and all(path.is_dir() for _, path in kept)
    names = {path.name for path in kept[-1][1].iterdir()}
    assert names == {"index.json", "rest.pt", "shard-00001-model-00001-of-00001.safetensors"}
    assert json.loads((kept[-1][1] / "index.json").read_text())["files"].keys() == names - {"index.json"}

    pieces = next(kept[-1][1].glob("*.safetensors"))
    content = bytearray(pieces.read_bytes())
    content[-100] ^= 1
    pieces.write_bytes(content)
    with pytest.warns(UserWarning, match="passing over the damaged checkpoint .*step-00000006.*checksum"):
        train(config, "pretrain")
    assert "continuing from step 4" in capsys.readouterr().out
    assert_same(whole, config)

    exported = load(export_run(config.run_dir, Path(config.run_dir) / "export"))
    average = read_checkpoint(checkpoints(folder(whole))[-1][1])["ema"]["2"]
    weights = exported.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in average.items())


@pytest.mark.slow
def test_the_strategy_of_a_run_can_change(toy):
    plan = "optimizer.decay_share=0"  # else max_steps shapes the rates
    whole = toy(plan, run="whole")
    train(whole, "pretrain")
    for number, (first, then) in enumerate([([SHARDED], []), ([], [SHARDED])]):
        config = toy(plan, *then, run=str(number))
        train(toy(plan, "max_steps=3", *first, run=str(number)), "pretrain")
        train(config, "pretrain")
        assert_same(whole, config, 1e-5)


@pytest.mark.parametrize("broken", ["shard", "rest.pt", "index.json"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_every_damaged_file_is_found(broken, how, tmp_path):
    path = tmp_path / "step-00000002.ckpt"
    dist.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    mesh = init_device_mesh("cpu", (1,))
    weight = distribute_tensor(torch.randn(40, 40), mesh, [Shard(0)])
    sharded_checkpoint.save({"state_dict": {"w": weight}, "ema": {}, "export": {}}, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], weight.full_tensor())
    check(path)
    file = next(file for file in path.iterdir() if file.name.startswith(broken))
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises((ValueError, OSError)):
        check(path)


@pytest.mark.parametrize("where", ["pieces", "rest"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(where, toy, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if where == "rest":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.warns(UserWarning, match="No space left on device; going on without the checkpoint"):
        run_dir = train(toy(SHARDED, "max_steps=2"), "pretrain")
    assert (run_dir / "summary.json").is_file() and not list((run_dir / "checkpoints").iterdir())


def test_half_precision_is_refused_in_one_line(toy):
    with pytest.raises(UserError, match="trainer.precision: 16-mixed does not go with trainer.strategy=fsdp"):
        train(toy(SHARDED, "trainer.precision=16-mixed"), "pretrain")
