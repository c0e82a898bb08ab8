"""Students of a tiny diffusers pipeline on two sharded processes, beside one process that is not sharded.

    python fsdp_family_program.py FAMILY

Prints a JSON object: by kind of student, the largest relative errors of gradients, weights and averages, how
far training moved the weights, and how many of them are in pieces.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from fmtt.models.diffusers.pretrained import load_flow_map
from fmtt.models.diffusers.student import Lora, student_of, teacher_of
from fmtt.tensor import take_cond
from tests.models.diffusers.conftest import MAKERS, conditions
from train.ema import Ema
from train.losses import OBJECTIVES
from train.losses.base import PathSample, Times, sample_path
from train.optimizer import MuonWithAdamW, split_parameters
from train.strategy import shard

SAMPLES, STEPS = 4, ("lmd", "emd", "psd")
KINDS = ("lora", "full", "lora on half")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def steps(folder: str, family: str, kind: str, rank: int, ranks: int) -> dict[str, Any]:
    """Three steps on this rank's share of the samples, sharded where there are several ranks."""
    torch.manual_seed(0)
    lora, dtype = kind != "full", torch.bfloat16 if kind == "lora on half" else torch.float32
    teacher = load_flow_map(folder, height=8, width=8, dtype=dtype)
    student = student_of(teacher, lora=Lora(rank=2) if lora else None)
    teacher = teacher_of(student) if lora else teacher
    with torch.no_grad():
        for weight in (p for p in student.parameters() if p.requires_grad):
            weight.add_(0.05 * torch.randn_like(weight))  # adapters that do nothing hide what is wrong
    if ranks > 1:
        shard(student, init_device_mesh("cpu", (ranks,)), (teacher,))
    x_0, x_1 = torch.randn(2, SAMPLES, *student.data_shape)
    times = Times(*torch.rand(3, SAMPLES).sort(0).values)
    path, cond = sample_path(student.interpolant, x_0, x_1, times.s), conditions(family, SAMPLES)
    own = slice(rank * SAMPLES // ranks, (rank + 1) * SAMPLES // ranks)
    path, times = PathSample(*(v[own] for v in path)), Times(*(v[own] for v in times))
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    before = {name: whole(p) for name, p in trained.items()}
    # The teacher first, as evaluation may call it: what it shares must not be taken for the outermost unit.
    velocity = teacher.velocity(path.x_s, times.s, take_cond(cond, own)).detach()
    optimizer, ema = MuonWithAdamW(*split_parameters(student), muon_lr=1e-2, lr=1e-3), Ema(student, [2.0])
    kept: dict[str, Any] = {"gradients": []}
    for number, name in enumerate(STEPS):
        optimizer.zero_grad()
        loss = OBJECTIVES[name](student, teacher.velocity, path, times, take_cond(cond, own)).per_sample
        loss.mean().backward()
        kept["gradients"].append({n: whole(p.grad) for n, p in trained.items() if p.grad is not None})
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        ema.update(student, number + 1)
    kept["weights"] = {name: whole(p) for name, p in trained.items()}
    kept["ema"] = {name: whole(value) for name, value in ema.averages[0].items()}
    kept["moved"] = max(float((kept["weights"][n] - before[n]).abs().max()) for n in before)
    kept["pieces"] = sum(isinstance(p, DTensor) for p in student.parameters())
    kept["frozen pieces"] = sum(isinstance(p, DTensor) for p in teacher.parameters())
    after = teacher.velocity(path.x_s, times.s, take_cond(cond, own))
    kept["teacher moved"] = float((after - velocity).abs().max())
    return kept


def child(rank: int, port: int, out: Path, folder: str, family: str) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        for kind in KINDS:
            torch.save(steps(folder, family, kind, rank, 2), out / f"{kind}-{rank}.pt")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys() and found
    size = max(float(value.norm()) for value in expected.values())
    return max(float((value - expected[name]).norm()) for name, value in found.items()) / size


def main(family: str, out: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = str(out / "pipeline")
    MAKERS[family]().save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for process in [child(rank, port, out, folder, family) for rank in (0, 1)]:
        assert os.waitpid(process, 0)[1] == 0, "a process failed"
    result = {}
    for kind in KINDS:
        one = steps(folder, family, kind, 0, 1)
        for rank in (0, 1):
            two = torch.load(out / f"{kind}-{rank}.pt", weights_only=True)
            both = zip(two["gradients"], one["gradients"], strict=True)
            about = {"gradients": max(error(a, b) for a, b in both)}
            about |= {key: error(two[key], one[key]) for key in ("weights", "ema")}
            about |= {key: two[key] for key in ("moved", "pieces", "frozen pieces", "teacher moved")}
            result[f"{kind} {rank}"] = about
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(main(sys.argv[1], Path(scratch))))
