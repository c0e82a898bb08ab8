"""What a run says of its speed: rates, time waiting for data, MFU, the slowest rank, memory."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train.throughput
from data.stream import Stream
from fmtt.models.checkpoint import load
from fmtt.models.diffusers.family import LatentTransformer
from train.build import build_module
from train.config import Config
from train.export import export_run
from train.module import FlowMapModule
from train.run import train as train_run
from train.throughput import PREFIX, Pass, Throughput, peak_flops, tokens_per_sample

ALWAYS = {"samples_per_s", "data_wait", "memory_gb"}


def logged(config: Config) -> dict[int, dict[str, float]]:
    """By step, what was logged of the throughput."""
    with open(Path(config.run_dir) / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    rows = {}
    for row in table:
        values = {k.removeprefix(PREFIX): float(v) for k, v in row.items() if v and k.startswith(PREFIX)}
        if values:
            rows[int(row["step"])] = values
    return rows


@pytest.mark.parametrize(
    "device, precision, tera",
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989),
        ("NVIDIA H100 80GB HBM3", "32-true", 67),
        ("NVIDIA H100 PCIe", "16-mixed", 756),
        ("NVIDIA H200", "bf16-mixed", 989),
        ("NVIDIA A100-SXM4-40GB", "bf16-mixed", 312),
        ("NVIDIA A40", "bf16-mixed", 150),
        ("NVIDIA L4", "bf16-mixed", 121),
        ("NVIDIA L40S", "bf16-mixed", 362),
        ("NVIDIA RTX A6000", "32-true", 38.7),
        ("Tesla V100-SXM2-32GB", "16-mixed", 125),
        ("NVIDIA A1000 Laptop GPU", "bf16-mixed", None),
        ("NVIDIA GeForce GT 710", "32-true", None),
    ],
)
def test_the_peak_of_a_device_by_its_name(device, precision, tera):
    found = peak_flops(device, precision)
    assert found is None if tera is None else found == pytest.approx(1e12 * tera)


def test_where_matrix_products_round_to_tf32_its_peak_counts():
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_flops("NVIDIA A100-SXM4-80GB", "32-true") == pytest.approx(156e12)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tokens(toy, clock_teacher):
    assert tokens_per_sample(load(clock_teacher)) == 16
    assert tokens_per_sample(build_module(toy(), "pretrain", (2,)).student) is None

    class Latents(LatentTransformer):
        encode = predict = None  # type: ignore[assignment]

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.transformer = SimpleNamespace(config={"patch_size": 2})

    student = SimpleNamespace(network=Latents(), data_shape=(16, 8, 12))
    assert tokens_per_sample(student) == 24  # type: ignore[arg-type]


def test_what_is_logged(toy, capsys):
    config = toy("log.every_steps=2", "trainer.accumulate=2")
    run_dir = train_run(config, "pretrain")
    rows = logged(config)
    assert list(rows) == [1, 3, 5] and all(row.keys() == ALWAYS for row in rows.values())
    for row in rows.values():
        assert row["samples_per_s"] > 0 and 0 <= row["data_wait"] <= 1 and 0.01 < row["memory_gb"] < 100
    said = capsys.readouterr().out
    assert "samples/s" in said and "% waiting for data" in said and "\x1b" not in said
    # It is about the machine that trained, not about the model.
    export_run(run_dir, run_dir / "export")
    assert PREFIX not in (run_dir / "export/config.json").read_text()
    assert PREFIX in json.dumps(json.loads((run_dir / "summary.json").read_text())["metrics"])


def test_tokens_per_second(toy, monkeypatch):
    monkeypatch.setattr(train.throughput, "tokens_per_sample", lambda student: 16)
    config = toy("max_steps=2")
    train_run(config, "pretrain")
    (row,) = logged(config).values()
    assert row["tokens_per_s"] == pytest.approx(16 * row["samples_per_s"], rel=1e-4)


def test_time_waiting_for_data(toy, monkeypatch):
    original, nap = Stream.__iter__, 0.05

    def slow(self):
        for batch in original(self):
            time.sleep(nap)
            yield batch

    waits: list[Pass] = []
    clear = Throughput._measure

    def measure(self, trainer):
        waits.extend(self._passes)
        return clear(self, trainer)

    monkeypatch.setattr(Throughput, "_measure", measure)
    monkeypatch.setattr(Stream, "__iter__", slow)
    config = toy(run="slow")
    train_run(config, "pretrain")
    assert len(waits) == 5 and all(nap <= one.waited <= one.total for one in waits)
    shares = [one.waited / one.total for one in waits]
    assert [row["data_wait"] for row in logged(config).values()] == pytest.approx(shares, rel=1e-4)


def test_operations_of_the_loss_and_its_gradient_are_counted(toy, monkeypatch):
    """Against a closed form for the linear layers, which are all that multiplies matrices here."""
    monkeypatch.setattr(train.throughput, "peak_of", lambda device, precision: 1e9)
    callbacks: list[Throughput] = []
    start = Throughput.on_train_start

    def noting(self, *arguments):
        callbacks.append(self)
        return start(self, *arguments)

    monkeypatch.setattr(Throughput, "on_train_start", noting)
    config = toy("max_steps=4", "student.args={width: 32, depth: 2}")
    train_run(config, "pretrain")
    student = build_module(config, "pretrain", (2,)).student
    rows = config.batch_size
    forward = sum(2 * rows * m.weight.numel() for m in student.modules() if isinstance(m, nn.Linear))
    flops = callbacks[0].flops
    assert flops is not None and 2 * forward < flops <= 3 * forward  # no gradient for inputs and frozen parts
    assert list(logged(config)) == [2, 3]
    for row in logged(config).values():
        assert row["mfu"] == pytest.approx(flops * row["samples_per_s"] / rows / 1e9, rel=1e-4)


def test_ranks_are_compared(monkeypatch):
    """Three ranks: the second waits for data most, the last reaches the others last."""
    others = torch.tensor([[0.5, 0.010, 2.0], [0.1, 0.002, 3.0]])
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), all_gather=lambda own: torch.cat([own[None], others])
    )
    watch = Throughput(1)
    watch._passes = [Pass(0.1, 0.02, met, 8) for met in (0.011, 0.012, 0.9)]
    metrics = watch._measure(SimpleNamespace(strategy=strategy, world_size=3))  # type: ignore[arg-type]
    assert metrics["samples_per_s"] == pytest.approx(3 * 8 / 0.1)
    assert metrics["data_wait"] == pytest.approx(0.5) and metrics["memory_gb"] == pytest.approx(3)
    assert metrics["skew"] == pytest.approx((0.012 - 0.002) / 0.1) and metrics["slowest_rank"] == 2


@pytest.mark.slow
def test_the_slower_of_two_processes_is_named(toy, pretrain_yaml, run_python, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\nfrom train.module import FlowMapModule\nfrom train.__main__ import main\n"
        "original = FlowMapModule.training_step\n"
        "def step(self, batch, batch_idx):\n"
        "    time.sleep(0.1 * self.global_rank)\n    return original(self, batch, batch_idx)\n"
        "FlowMapModule.training_step = step\nsys.exit(main(sys.argv[1:]))\n"
    )
    config = toy("max_steps=9", "log.every_steps=3")
    own = (f"run_dir={config.run_dir}", "max_steps=9", "log.every_steps=3", "evaluate.every_steps=100")
    ranks = ("trainer.devices=2", "trainer.strategy=ddp")
    done = run_python(program, "pretrain", pretrain_yaml, *own, *ranks)
    assert done.returncode == 0, done.stderr
    for row in logged(config).values():
        assert row.keys() == ALWAYS | {"skew", "slowest_rank"}
        assert row["slowest_rank"] == 1 and 0.2 < row["skew"] < 1


def test_a_bar_on_a_terminal(toy, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    train_run(toy("max_steps=3"), "pretrain")
    assert "\x1b[" in terminal.getvalue() and "samples_per_s" in terminal.getvalue()


def test_how_to_upload_an_offline_run(toy, capsys):
    wandb = pytest.importorskip("wandb")
    wandb.finish()
    run_dir = train_run(toy("max_steps=2", "log.wandb=true"), "pretrain")
    wandb.finish()
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "wandb sync" in text)
    pattern = Path(line.split("wandb sync ")[1])
    assert pattern.parent == run_dir.resolve() / "wandb" and list(pattern.parent.glob(pattern.name))


def test_a_stopped_run_does_not_say_how(toy, capsys, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.finish()
    original = FlowMapModule.training_step

    def stop(self, batch, batch_idx):
        self.trainer.should_stop = True
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FlowMapModule, "training_step", stop)
    train_run(toy("log.wandb=true"), "pretrain")
    wandb.finish()
    assert "wandb sync" not in capsys.readouterr().out
