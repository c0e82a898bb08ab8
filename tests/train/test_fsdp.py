"""Sharded training on real processes: gradients and weights are those of one process on the joined batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.build import build_module
from train.checkpoints import checkpoints, read_checkpoint
from train.config import Config, load_config
from train.export import export_run
from train.losses import OBJECTIVES, PathSample, Times

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAM = Path(__file__).with_name("fsdp_program.py")
CLOCK = """\
seed: 3
max_steps: 6
batch_size: 4
student: {network: dit, init: scratch, args: {patch: 8, dim: 16, depth: 3, heads: 2}}
objective: {name: lmd}
times: {diagonal: 0.25}
optimizer: {warmup: 2, decay_share: 0}
ema: {half_lives: [2, 5]}
weighting: {learned: true}
data: {source: clock}
checkpoint: {every_steps: 2, keep: 3, best: ""}
log: {every_steps: 1}
evaluate: {every_steps: 3, num_samples: 2, grid_samples: 0}
trainer: {accelerator: cpu}
"""
Runs = Callable[..., list[list[int]]]


@pytest.fixture
def clock_yaml(tmp_path: Path, clock_teacher: Path) -> Path:
    path = tmp_path / "clock.yaml"
    path.write_text(f"{CLOCK}teacher: {clock_teacher}\n")
    return path


@pytest.fixture
def execute(run_python, clock_yaml, tmp_path) -> Runs:
    """``execute(run, ...)``: runs as fsdp_program.py takes them; their ranks' exit statuses."""

    def run(*runs: dict[str, Any]) -> list[list[int]]:
        for one in runs:
            one["settings"] = [f"run_dir={tmp_path / one.pop('run_dir')}", *one.get("settings", [])]
            if "out" in one:
                one["out"] = str(tmp_path / one["out"])
                Path(one["out"]).mkdir()
        done = run_python(PROGRAM, clock_yaml, json.dumps(runs), timeout=1500)
        assert done.returncode == 0, done.stderr
        statuses = json.loads(done.stdout.splitlines()[-1])
        for one, found in zip(runs, statuses, strict=True):
            assert "death" in one or set(found) == {0}, done.stderr
        return statuses

    return run


def kept(folder: Path, ranks: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def joined(steps: tuple[dict[str, Any], ...]) -> tuple[PathSample, Times]:
    """The samples of one step, of all ranks."""
    path = PathSample(*(torch.cat(v) for v in zip(*(one["path"] for one in steps), strict=True)))
    return path, Times(*(torch.cat(v) for v in zip(*(one["times"] for one in steps), strict=True)))


def one_process(
    config: Config, ranks: list[dict[str, Any]], objectives: list[str], *, half: bool = False
) -> dict[str, Any]:
    """The same steps in this process, on the joined batches: gradients, weights, averages."""
    module = build_module(config, "distill", (3, 32, 32))
    built = module.configure_optimizers()
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    gradients = []
    for number, steps in enumerate(zip(*(rank["steps"] for rank in ranks), strict=True)):
        path, times = joined(steps)
        objective = OBJECTIVES[objectives[number % len(objectives)]]
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            loss = objective(module.student, module.velocity(), path, times, None).per_sample
        optimizer.zero_grad()
        module.weighting(loss, times).mean().backward()
        gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip)
        optimizer.step()
        schedule.step()
        module.ema.update(module.student, number + 1)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return {"gradients": gradients, "weights": weights, "ema": module.ema.state_dict()}


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(value, expected[name], **options, msg=lambda text, n=name: f"{n}: {text}")


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative, over all gradients together."""
    size = sum(float(value.square().sum()) for value in expected.values())
    return (sum(float((v - expected[name]).square().sum()) for name, v in found.items()) / size) ** 0.5


def test_weights_and_gradients_are_those_of_one_process(execute, clock_yaml, tmp_path):
    """Every kind of derivative; Muon, AdamW, clipping, a learned weighting and averages on pieces. FSDP and
    HSDP, a teacher and the student's own averages."""
    steps = ("max_steps=4", "batch_size=2")
    fsdp, hsdp = ["trainer.strategy=fsdp", *steps], ["trainer.strategy=hsdp", *steps]
    own = ["teacher=self", "ema.target_half_life=3", "objective.name=mean_flow"]
    runs: list[dict[str, Any]] = [
        {"ranks": 2, "settings": fsdp, "objectives": ["lmd", "lsd", "emd", "psd"]},
        {"ranks": 2, "settings": [*fsdp, *own], "objectives": ["mean_flow"]},
        {"ranks": 4, "nodes": 2, "settings": hsdp, "objectives": ["trajectory", "esd", "tvm", "lmd"]},
        {
            "ranks": 2,
            "settings": [*fsdp, "student.anchored=true", "student.init=teacher"],
            "objectives": ["trajectory", "lmd"],
        },
    ]
    for number, run in enumerate(runs):
        run |= {"run_dir": f"run{number}", "out": f"out{number}"}
    half = {"ranks": 2, "settings": [*fsdp, "max_steps=1", "trainer.precision=bf16-mixed"]}
    half |= {"run_dir": "half", "out": "half-out", "objectives": ["lmd"]}
    execute(*(dict(run) for run in [*runs, half]))
    for number, run in enumerate(runs):
        ranks = kept(tmp_path / f"out{number}", run["ranks"])
        config = load_config(clock_yaml, ["run_dir=unused", *run["settings"]])
        expected = one_process(config, ranks, run["objectives"])
        network = "student.network." + ("own." if "student.anchored=true" in run["settings"] else "")
        for rank in ranks:
            pieces = {name for name, in_pieces in rank["pieces"].items() if in_pieces}
            assert {f"{network}blocks.0.qkv.weight", f"{network}embed.bias"} <= pieces
            for step, gradients in zip(rank["steps"], expected["gradients"], strict=True):
                assert_close(step["gradients"], gradients, 2e-5)
            assert_close(rank["weights"], expected["weights"], 2e-5)
            for half_life, average in expected["ema"].items():
                assert_close(rank["ema"][half_life], average, 2e-5)
        first = dict(build_module(config, "distill", (3, 32, 32)).named_parameters())
        name = f"{network}blocks.0.qkv.weight"
        moved = (expected["weights"][name] - first[name]).abs().max()
        assert float(moved) > 1e-3, "the comparison would hold without any training"

    # In bfloat16, where halves of a batch are rounded otherwise: as near to float32 as one process is.
    ranks = kept(tmp_path / "half-out", 2)
    config = load_config(clock_yaml, ["run_dir=unused", *fsdp])
    exact, rounded = (
        one_process(config, ranks, ["lmd"], half=half)["gradients"][0] for half in (False, True)
    )
    assert all(value.dtype == torch.float32 for value in ranks[0]["steps"][0]["gradients"].values())
    own = distance(rounded, exact)
    assert 1e-4 < own < 0.05 and distance(ranks[0]["steps"][0]["gradients"], exact) < 1.5 * own


def same(one: Path, other: Path) -> None:
    """Bit for bit: weights, averages and the optimizers' states of the last step."""
    a, b = (read_checkpoint(run_dir / "checkpoints/step-00000006.ckpt") for run_dir in (one, other))
    assert_equal(a["state_dict"], b["state_dict"])
    assert_equal(a["ema"], b["ema"])
    assert_equal(a["optimizer_states"], b["optimizer_states"])


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    elif torch.is_tensor(a):
        assert torch.equal(a, b)
    else:
        assert a == b


DEATHS = {4: 4, "half-written": 2, "before the rename": 2, "after the rename": 4}
"""By moment of death: the step of the checkpoint that is left."""


def test_a_killed_run_goes_on_bit_for_bit(execute, tmp_path):
    two: dict[str, Any] = {"ranks": 2, "settings": ["trainer.strategy=fsdp"]}
    killed = [{**two, "run_dir": str(moment), "death": moment} for moment in DEATHS]
    again = [{**two, "run_dir": str(moment), "out": f"out {moment}"} for moment in DEATHS]
    statuses = execute({**two, "run_dir": "whole"}, *killed, *again)
    assert all(-9 in found for found in statuses[1 : 1 + len(killed)])
    for moment, step in DEATHS.items():
        for rank in kept(tmp_path / f"out {moment}", 2):
            assert rank["steps"][0]["step"] == step, "it goes on from the newest whole checkpoint"
        same(tmp_path / "whole", tmp_path / str(moment))
        found = checkpoints(tmp_path / str(moment) / "checkpoints")
        assert [step for step, _ in found] == [2, 4, 6] and all(path.is_dir() for _, path in found)
        left = list((tmp_path / str(moment) / "checkpoints").iterdir())
        assert len(left) == 3, "nothing unfinished is left"


def test_another_number_of_processes_sees_the_same_samples(execute, tmp_path):
    """From one process to two, sharded and not, and back to one that accumulates; exports agree."""
    one, two, half = ["batch_size=8"], ["batch_size=4"], ["batch_size=4", "trainer.accumulate=2"]
    fsdp, ddp = "trainer.strategy=fsdp", "trainer.strategy=ddp"
    execute(
        {"ranks": 1, "run_dir": "whole", "settings": list(one), "out": "whole-out"},
        {"ranks": 1, "run_dir": "fsdp", "settings": [*one, "max_steps=3"]},
        {"ranks": 2, "run_dir": "fsdp", "settings": [*two, fsdp], "out": "fsdp-out"},
        {"ranks": 1, "run_dir": "ddp", "settings": [*one, "max_steps=3"]},
        {"ranks": 2, "run_dir": "ddp", "settings": [*two, ddp], "out": "ddp-out"},
        {"ranks": 2, "run_dir": "back", "settings": [*two, fsdp, "max_steps=3"]},
        {"ranks": 1, "run_dir": "back", "settings": list(half), "out": "back-out"},
        {"ranks": 2, "run_dir": "all-two", "settings": [*two, fsdp], "out": "all-two-out"},
    )

    def samples(name: str, ranks: int) -> dict[int, torch.Tensor]:
        """By step: the data of all ranks and passes, in the order of their sums."""
        found: dict[int, list[torch.Tensor]] = {}
        for rank in kept(tmp_path / f"{name}-out", ranks):
            for step in rank["steps"]:
                found.setdefault(step["step"], []).append(step["path"][2])
        whole = {step: torch.cat(parts) for step, parts in found.items()}
        return {step: x[x.double().flatten(1).sum(1).argsort()] for step, x in whole.items()}

    begun_alone, begun_by_two = samples("whole", 1), samples("all-two", 2)
    assert sorted(begun_alone) == sorted(begun_by_two) == list(range(6))
    for name, ranks, expected in (
        *(("fsdp", 2, begun_alone), ("ddp", 2, begun_alone), ("back", 1, begun_by_two)),
    ):
        found = samples(name, ranks)
        assert sorted(found) == [3, 4, 5]
        assert all(torch.equal(x, expected[step]) for step, x in found.items()), name
    assert not torch.equal(begun_alone[3], begun_alone[4])
    assert checkpoints(tmp_path / "back/checkpoints")[-1][1].is_file()
    assert checkpoints(tmp_path / "fsdp/checkpoints")[-1][1].is_dir()
    # What is exported from pieces is what the processes held.
    content = kept(tmp_path / "fsdp-out", 2)[0]
    exported = export_run(tmp_path / "fsdp", tmp_path / "export")
    from fmtt import load

    weights = load(exported).state_dict()
    assert weights and all(torch.equal(weights[n], v) for n, v in content["ema"]["2"].items())
