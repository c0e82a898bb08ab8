"""Trains in child processes, kills each with SIGKILL at a random moment, finishes the run, compares.

    python kill_program.py CONFIG.yaml FOLDER SEED COUNT [moment of a save]

Prints a JSON list: for each killed run, the step that it went on from (-1 without a checkpoint), whether
the kill came before the end, and the names of the tensors that differ from an uninterrupted run's.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from train.checkpoints import checkpoints, newest_checkpoint, read_checkpoint
from train.config import load_config
from train.run import train


def child(config_path: str, run_dir: Path, moment: str = "") -> int:
    """A process that trains in ``run_dir``; it kills itself at its second save's ``moment``."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if moment:
            kill_in_second_save(moment)
        config = load_config(config_path, [f"run_dir={run_dir}"])
        train(config, "distill" if config.teacher else "pretrain")
        status = 0
    finally:
        os._exit(status)


def kill_in_second_save(moment: str) -> None:
    save, replace, saves = torch.save, os.replace, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(content: Any, path: Path) -> None:
        nonlocal saves
        saves += 1
        save(content, path)
        if saves == 2 and moment == "half-written":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def replacing(source: Path, target: Path) -> None:
        last = saves == 2 and str(target).endswith(".ckpt")
        if last and moment == "before the rename":
            die()
        replace(source, target)
        if last and moment == "after the rename":
            die()

    torch.save, os.replace = saving, replacing


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and the optimizers' moments of the newest checkpoint."""
    content = read_checkpoint(checkpoints(run_dir / "checkpoints")[-1][1])
    found = dict(content["state_dict"])
    found |= {f"ema {h} {k}": v for h, average in content["ema"].items() for k, v in average.items()}
    parts = content["optimizer_states"][0]["parts"]
    if "adversarial" in content:
        found |= {f"discriminator {k}": v for k, v in content["adversarial"]["discriminator"].items()}
        parts = [*parts, content["adversarial"]["optimizer"]]
    for i, part in enumerate(parts):
        for j, state in part["state"].items():
            found |= {f"optimizer {i} {j} {k}": v for k, v in state.items() if torch.is_tensor(v)}
    return found


def finish(process: int) -> None:
    _, status = os.waitpid(process, 0)
    assert status == 0, f"training ended with {status}"


def main(config_path: str, folder: Path, seed: int, count: int, moment: str = "") -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    start = time.monotonic()
    finish(child(config_path, folder / "whole"))
    duration, whole = time.monotonic() - start, tensors(folder / "whole")
    result, draw = [], random.Random(seed)
    for i in range(count):
        run_dir = folder / str(i)
        process = child(config_path, run_dir, moment)
        if not moment:
            time.sleep(draw.uniform(0, duration))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        found = newest_checkpoint(run_dir / "checkpoints")
        finish(child(config_path, run_dir))
        again = tensors(run_dir)
        assert again.keys() == whole.keys()
        differ = [name for name, value in whole.items() if not torch.equal(value, again[name])]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        result.append({"step": found[0] if found else -1, "killed": killed, "differ": differ})
        assert not list(run_dir.rglob("*.tmp")), "an unfinished file is left"
    return result


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])))
