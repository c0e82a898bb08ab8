"""Runs of several processes each, one run after another; the imports are paid for once.

    python fsdp_program.py CONFIG.yaml '[{"ranks": 2, "settings": ["key=value", ...], ...}, ...]'

Keys of a run: ``stage``, ``nodes``, ``out`` (a folder for what each rank drew and computed), ``objectives``
(one for each step, in turn), ``death`` (a moment of the second save at which rank 0 gets SIGKILL, or a step
at whose beginning all do). Prints a JSON list of the ranks' exit statuses, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

import train.build
from tests.train.kill_program import kill_in_second_save
from train.__main__ import main
from train.losses import OBJECTIVES
from train.module import FlowMapModule


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in pieces, put together."""
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().clone()


def recording(run: dict[str, Any]) -> type[FlowMapModule]:
    """The module of ``run``, which keeps what passes."""
    seen: list[dict[str, Any]] = []
    names = run.get("objectives", [])

    class Recording(FlowMapModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if run.get("death") == self.global_step:
                os.kill(os.getpid(), signal.SIGKILL)
            chosen = OBJECTIVES[names[self.global_step % len(names)]] if names else self.objective.objective

            calls: list[dict[str, Any]] = []

            def objective(student: Any, teacher: Any, path: Any, times: Any, cond: Any = None) -> Any:
                calls.append({"step": self.global_step, "path": tuple(path), "times": tuple(times)})
                return chosen(student, teacher, path, times, cond)

            self.objective.objective = objective
            try:
                return super().training_step(batch, batch_idx)
            finally:
                self.objective.objective = chosen
                seen.append(calls[-1])  # before it, the derivative is checked on a few samples

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            named = self.named_parameters()
            seen[-1]["gradients"] = {n: whole(p.grad) for n, p in named if p.grad is not None}
            super().configure_gradient_clipping(*args, **kwargs)

        def on_train_end(self) -> None:
            named, averages = dict(self.named_parameters()), self.ema.state_dict()
            content = {
                "steps": seen,
                "weights": {name: whole(p) for name, p in named.items()},
                "ema": {h: {n: whole(v) for n, v in average.items()} for h, average in averages.items()},
                "pieces": {name: list(whole(p).shape) != list(local(p).shape) for name, p in named.items()},
            }
            if "out" in run:
                torch.save(content, Path(run["out"]) / f"rank{self.global_rank}.pt")

    return Recording


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The piece of this process."""
    own = getattr(tensor, "to_local", None)
    return tensor if own is None else own()


def child(config: str, run: dict[str, Any], rank: int, port: int) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        ranks, nodes = run["ranks"], run.get("nodes", 1)
        each, settings = ranks // nodes, list(run["settings"])
        if ranks > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.environ.update(NODE_RANK=str(rank // each), LOCAL_RANK=str(rank % each))
            settings += [f"trainer.devices={each}", f"trainer.num_nodes={nodes}"]
        os.dup2(2, 1)
        train.build.FlowMapModule = recording(run)  # type: ignore[misc]
        if isinstance(run.get("death"), str) and rank == 0:
            kill_in_second_save(run["death"])
        status = main([run.get("stage", "distill"), config, *settings])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def execute(config: str, run: dict[str, Any]) -> list[int]:
    """The ranks' exit statuses. When one is killed all are, as launchers do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    left = {child(config, run, rank, port): rank for rank in range(run["ranks"])}
    statuses = [0] * run["ranks"]
    while left:
        process, status = os.wait()
        statuses[left.pop(process)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return statuses


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([execute(sys.argv[1], run) for run in json.loads(sys.argv[2])]))
