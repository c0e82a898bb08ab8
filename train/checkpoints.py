"""Training checkpoints: written whole or not at all, the newest kept, found again by the same command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from fmtt.errors import UserError
from fmtt.files import atomic_write
from train.metrics import MetricsCsv

_NAME = re.compile(r"step-(\d{8})\.ckpt")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every finished checkpoint in ``folder``, oldest first."""
    found = []
    for path in folder.glob("step-*.ckpt"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU without running any code from it."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    missing = {"state_dict", "ema", "export"} - content.keys()
    if missing:
        raise ValueError(f"it has no {sorted(missing)[0]}")
    return content


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest checkpoint that can be read, or None; an unreadable one is reported and passed over."""
    for step, path in reversed(checkpoints(folder)):
        try:
            read_checkpoint(path)
        except Exception as error:  # a damaged file can raise nearly anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            rank_zero_warn(f"passing over the damaged checkpoint {path}: {reason}")
            continue
        return step, path
    return None


def final_checkpoint(run_dir: Path) -> tuple[int, dict[str, Any]]:
    """(step, content) of the newest checkpoint of a run.

    Raises:
        UserError: when the folder holds none.
    """
    found = newest_checkpoint(run_dir / "checkpoints")
    if found is None:
        raise UserError(f"{run_dir} holds no readable checkpoint: give the run_dir of a training run")
    return found[0], read_checkpoint(found[1])


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the final name and renames. A full disk or folder is reported; training goes on."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        try:
            with atomic_write(path) as temporary:
                torch.save(checkpoint, temporary)
        except (UserError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            rank_zero_warn(f"{str(error).splitlines()[0]}; going on without the checkpoint {path}")


class Checkpoints(Callback):
    """Saves every ``every_steps`` optimizer steps and at the end, keeping the newest ``keep``."""

    def __init__(self, folder: Path, every_steps: int, keep: int) -> None:
        self.folder, self.every_steps, self.keep = folder, every_steps, keep
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = trainer.global_step
        if trainer.is_global_zero:
            for left_by_a_kill in self.folder.glob(".step-*.tmp"):
                left_by_a_kill.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._last and (step % self.every_steps == 0 or step >= trainer.max_steps):
            self.save(trainer, step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning logs a step after its checkpoint: put the metrics on disk that the checkpoint goes with.
        if trainer.global_step == self._last:
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCsv):
                    logger.flush()

    def save(self, trainer: Trainer, step: int) -> None:
        """Write one checkpoint, on every rank at once, and delete the oldest."""
        self._last = step
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            # A damaged newer one, from which this run fell back, must not count.
            for _, old in [found for found in checkpoints(self.folder) if found[0] <= step][: -self.keep]:
                old.unlink(missing_ok=True)
