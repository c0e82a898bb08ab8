"""What a training step of each objective costs beside a flow-matching step of the same network and batch.

``make bench-distill`` runs this. Student and teacher are one small DiT; a step is the objective and its
gradient in the student's weights, without the optimizer. Times are processor time, the least of some rounds
in which all objectives take turns; memory is the peak of what the step allocates. The floor is the ratio of
network passes per sample: a forward counts 1, a backward 2, a derivative 1 on top of its forward, and the
backward of a derivative 2. Prints a table and writes OUT/summary.json.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its start and stop

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fmtt.errors import UserError
from fmtt.files import make_writable, write_json
from fmtt.flow.derivative import ForwardMode, Observed, using
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.dit import DiT
from train.build import choose
from train.derivative_reference import Inputs
from train.losses import OBJECTIVES, FlowMapLoss
from train.losses.base import sample_path
from train.times import TimeSampler

SHAPE = (3, 32, 32)
BASE = "flow_matching"
DIAGONAL = 0.5
"""Share of the samples with s = t for objectives that need some."""
TARGETS = {
    "eager": {"lmd": 2.3, "emd": 2.3, "psd": 2.0, "lsd": 3.7},
    "compiled": {"lmd": 2.0, "emd": 2.0},
}
"""Largest ratios on a CPU."""


class Floor(NamedTuple):
    """Network passes per sample of the batch, and whether a gradient goes through a derivative."""

    passes: float
    through: bool


class Cost(NamedTuple):
    """One training step: seconds, and peak bytes above what was there before."""

    seconds: float
    peak_bytes: int


def problem(
    batch: int, dim: int, depth: int, diagonal: float, device: torch.device | str = "cpu"
) -> tuple[NeuralFlowMap, Inputs]:
    """(student, what an objective is called with): random weights, none of them zero, and random data."""
    torch.manual_seed(0)
    student = NeuralFlowMap(DiT(SHAPE, dim=dim, depth=depth), Linear(), SHAPE).to(device)
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.02)
    teacher = copy.deepcopy(student).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    x_0, x_1 = torch.randn(2, batch, *SHAPE, generator=generator, device=device)
    times = TimeSampler(midpoint="uniform").sample(batch, generator, device)
    here = torch.arange(batch, device=device) < round(diagonal * batch)  # as many in every run
    times = times._replace(u=torch.where(here, times.s, times.u), t=torch.where(here, times.s, times.t))
    path = sample_path(student.interpolant, x_0, x_1, times.s)
    return student, Inputs(student, teacher.velocity, path, times, None)


def count_passes(objective: FlowMapLoss, inputs: Inputs) -> Floor:
    """Run the objective once and count what it asks of the networks."""
    rows, derivatives = [], []

    def counted(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        trained = torch.is_grad_enabled() and next(module.parameters()).requires_grad
        rows.append(len(args[0]) * (3 if trained else 1))

    def observe(observed: Observed) -> None:
        derivatives.append(observed.tangent)

    teacher = inputs.teacher.__self__  # type: ignore[attr-defined]
    hooks = [m.network.register_forward_hook(counted) for m in (inputs.student, teacher)]  # type: ignore[union-attr]
    try:
        with using(ForwardMode(), observe):
            loss = objective(*inputs).per_sample.sum()
    finally:
        for hook in hooks:
            hook.remove()
    total, through = sum(rows), False
    for tangent in derivatives:
        used = tangent.requires_grad and (
            torch.autograd.grad(loss, tangent, retain_graph=True, allow_unused=True)[0] is not None
        )
        total += len(tangent) * (3 if used else 1)
        through = through or used
    return Floor(total / len(inputs.path.x_s), through)


def training_step(
    objective: FlowMapLoss, inputs: Inputs, student: nn.Module, options: dict[str, Any] | None
) -> Callable[[], None]:
    """A step without arguments; ``options`` are the compiler's, None for eager."""

    def mean_loss(path: Any, times: Any) -> Tensor:
        return objective(inputs.student, inputs.teacher, path, times, None).per_sample.mean()

    if options is not None:  # every objective compiles the same function; beyond the limit it would not
        torch._dynamo.config.recompile_limit = 64
    run = mean_loss if options is None else torch.compile(mean_loss, options=options)

    def step() -> None:
        run(inputs.path, inputs.times).backward()
        student.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Of one step: processor time on a CPU, which other programs disturb little, else elapsed time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """The most that the step's tensors take at once."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, held)
    return most


def first_turn(step: Callable[[], None], device: torch.device) -> Cost:
    """Compile if need be, then measure the memory and one time."""
    step()
    return Cost(seconds(step, device), peak_bytes(step, device))


def measure(names: list[str], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By objective: its floor, and its cost eager and compiled beside that of flow matching."""
    device, found = torch.device(args.device), {}
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    for name in names:
        share = DIAGONAL if name == "psd" else 0.0
        student, inputs = problem(args.batch, args.dim, args.depth, share, device)
        floor = count_passes(OBJECTIVES[name], inputs)
        found[name] = {"passes": floor.passes}
        steps["eager", name] = training_step(OBJECTIVES[name], inputs, student, None)
        if args.compile:
            # Inductor would reuse the buffer of a tangent that is zero.
            options = {"allow_buffer_reuse": not floor.through}
            steps["compiled", name] = training_step(OBJECTIVES[name], inputs, student, options)
    costs: dict[tuple[str, str], Cost] = {}
    for mode, name in steps:
        try:
            costs[mode, name] = first_turn(steps[mode, name], device)
        except Exception as error:  # compilers fail in many ways
            if mode == "eager" or name == BASE:
                raise
            found[name]["compiled_fails"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        print(f"{mode} {name}: ready", flush=True)
    for _ in range(args.rounds - 1):
        for key, cost in costs.items():
            costs[key] = cost._replace(seconds=min(cost.seconds, seconds(steps[key], device)))
    for name in names:
        found[name]["floor"] = found[name]["passes"] / found[BASE]["passes"]
    for (mode, name), cost in costs.items():
        base = costs[mode, BASE]
        ratios = {"ratio": cost.seconds / base.seconds, "memory_ratio": cost.peak_bytes / base.peak_bytes}
        found[name][mode] = {**cost._asdict(), **ratios}
    return found


def table(found: dict[str, dict[str, Any]], modes: list[str]) -> str:
    """A line per objective; a * where a target is missed."""
    head = f"{'objective':15s}{'passes':>8s}{'floor':>8s}"
    lines = [head + "".join(f"{mode:>11s}{'target':>8s}{'memory':>9s}" for mode in modes)]
    for name, row in found.items():
        line = f"{name:15s}{row['passes']:8.1f}{row['floor']:8.2f}"
        for mode in modes:
            target = TARGETS[mode].get(name)
            cost = row.get(mode)
            mark = "*" if cost and target and cost["ratio"] > target else " "
            line += f"{cost['ratio']:10.2f}{mark}" if cost else f"{'fails':>10s} "
            line += f"{target or '':>8}" + (f"{cost['memory_ratio']:9.2f}" if cost else " " * 9)
        lines.append(line)
    base = found[BASE]
    units = [
        f"{m} {1000 * base[m]['seconds']:.0f} ms, {base[m]['peak_bytes'] / 2**20:.0f} MiB" for m in modes
    ]
    return "\n".join([*lines, f"one {BASE} step: {'; '.join(units)}"])


def main() -> int:
    """Exit status: 0 every target is met, 1 one is not, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-distill"))
    args = parser.parse_args()
    try:
        make_writable(args.out, "--out")
        for name in args.objectives:
            choose("--objectives", name, OBJECTIVES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [BASE, *(name for name in args.objectives if name != BASE)]
    if args.device == "cpu":
        torch.set_num_threads(1)  # processor time would count waiting threads
    found = measure(names, args)
    modes = ["eager", "compiled"] if args.compile else ["eager"]
    print(f"DiT of width {args.dim} and depth {args.depth}, batch {args.batch}, {args.device}")
    print(table(found, modes))
    pairs = [(m, n, limit) for m in modes for n, limit in TARGETS[m].items() if n in found]
    missed = [f"{m} {n}" for m, n, limit in pairs if m not in found[n] or found[n][m]["ratio"] > limit]
    settings = {key: getattr(args, key) for key in ("batch", "dim", "depth", "rounds", "device")}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    summary = {"targets": TARGETS, "missed": missed, "objectives": found, "versions": versions}
    write_json(args.out / "summary.json", {**settings, **summary})
    print(f"wrote {args.out / 'summary.json'}")
    return 1 if missed and args.device == "cpu" else 0


if __name__ == "__main__":
    sys.exit(main())
