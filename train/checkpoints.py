"""Training checkpoints: written whole or not at all, the newest and the best kept, damage found when read."""

from __future__ import annotations

import json
import os
import re
import signal
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from fmtt.errors import UserError, nearest
from fmtt.files import atomic_write, write_json
from train import sharded_checkpoint
from train.metrics import MetricsCsv
from train.preemption import StopRequest

_NAME = re.compile(r"step-(\d{8})\.ckpt")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every finished checkpoint in ``folder``, oldest first: files, or folders of pieces."""
    found = []
    for path in folder.glob("step-*.ckpt"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def check(path: Path) -> None:
    """Read all of a checkpoint and compare it with the checksums inside (a CRC-32 for each tensor or file).

    torch.load skips that: a flipped bit would become a slightly wrong weight.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: for one that is damaged or no training checkpoint.
    """
    if path.is_dir():
        sharded_checkpoint.check(path)
        return _complete(sharded_checkpoint.rest(path))
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    _complete(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU, checksums compared, without running any code from it."""
    check(path)
    return _load(path)


def _load(path: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    if path.is_dir():
        return sharded_checkpoint.load(path, without=without)
    return torch.load(path, map_location="cpu", weights_only=True)


def _complete(content: dict[str, Any]) -> None:
    missing = {"state_dict", "ema", "export"} - content.keys()
    if missing:
        raise ValueError(f"it has no {sorted(missing)[0]}")


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """The newest checkpoint in order, or None; a damaged one is reported and passed over."""
    for step, path in reversed(checkpoints(folder)):
        try:
            check(path)
        except Exception as error:  # a damaged file can raise nearly anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            rank_zero_warn(f"passing over the damaged checkpoint {path}: {reason}")
            continue
        return step, path
    return None


def final_checkpoint(run_dir: Path) -> tuple[int, dict[str, Any]]:
    """(step, content) of the newest checkpoint of a run, from pieces without the optimizer's states.

    Raises:
        UserError: when the folder holds none.
    """
    # Path.glob raises for a name that is too long.
    found = newest_checkpoint(run_dir / "checkpoints") if os.path.isdir(run_dir) else None
    if found is None:
        what = "holds no readable checkpoint" if os.path.isdir(run_dir) else "is not there"
        raise UserError(f"{run_dir} {what}: give the run_dir of a training run")
    return found[0], _load(found[1], ("optimizer_states",))


class Best(NamedTuple):
    """The kept checkpoint whose metric is smallest."""

    step: int
    metric: str
    value: float


def best_checkpoint(folder: Path) -> Best | None:
    """What ``best.json`` says, if its checkpoint is there."""
    try:
        best = Best(**json.loads((folder / "best.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return best if best.step in dict(checkpoints(folder)) else None


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the final name and renames. A full disk or folder is reported; training goes on."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        try:
            with atomic_write(path) as temporary:
                torch.save(checkpoint, temporary)
                if Path(path).is_dir():
                    sharded_checkpoint.remove(Path(path))
        except (UserError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            rank_zero_warn(f"{str(error).splitlines()[0]}; going on without the checkpoint {path}")
            return
        with suppress(OSError):  # not every file system syncs folders
            folder = os.open(Path(path).parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name reaches the disk before older checkpoints go
            finally:
                os.close(folder)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return _load(Path(path))


class Checkpoints(Callback):
    """Saves every ``every_steps`` optimizer steps, at the end, and when asked to stop.

    It stands before callbacks that measure, so that a checkpoint does not wait for them.

    Args:
        keep: how many of the newest stay.
        best: a column of metrics.csv; the checkpoint whose latest value of it, measured since the one
            before, is smallest stays too, and ``best.json`` names it. Empty for none.
        request: looked at after every optimizer step. If any rank received one, all save and stop.

    Attributes:
        stopped: whether training was ended by a request, and ``interrupted``: by Ctrl-C, on whatever rank.
    """

    def __init__(
        self, folder: Path, every_steps: int, keep: int, best: str = "", request: StopRequest | None = None
    ) -> None:
        self.folder, self.every_steps, self.keep, self.metric = folder, every_steps, keep, best
        self.request, self.stopped, self.interrupted = request or StopRequest(), False, False
        self._step = self._saved = self._begun = -1
        self._warned = False
        self._best: Best | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = self._saved = self._begun = trainer.global_step
        same = trainer.strategy.broadcast(self._step) == self._step
        if not trainer.strategy.reduce_boolean_decision(same, all=True):
            raise RuntimeError(
                f"the processes disagree on the newest checkpoint in {self.folder} (this one read step "
                f"{self._step}): the file system shows new files late; start again in a minute"
            )
        _count_passes(trainer)
        self.request.listen_to_ctrl_c()
        if trainer.is_global_zero:
            best = best_checkpoint(self.folder)
            if best is not None and best.metric == self.metric and best.step <= self._step:
                self._best = best

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # gradients are still being accumulated: no state to return to
            return
        self._step = step
        finished, asked = step >= trainer.max_steps, self.request.signal is not None
        meet = trainer.strategy.reduce_boolean_decision
        self.stopped = meet(asked, all=False) and not finished
        self.interrupted = self.stopped and meet(self.request.signal is signal.SIGINT, all=False)
        trainer.should_stop |= self.stopped or finished  # at which Lightning logs the last step too
        if step % self.every_steps == 0 or finished or self.stopped:
            self.save(trainer, step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning logs a step after its checkpoint: put the metrics on disk that the checkpoint goes with.
        if trainer.global_step == self._saved:
            self._note_best(trainer)
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCsv):
                    logger.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_best(trainer)

    def save(self, trainer: Trainer, step: int) -> None:
        """Write one checkpoint, on every rank at once, and delete the oldest."""
        self._saved = step
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            self._delete_old()

    def _note_best(self, trainer: Trainer) -> None:
        """Compare the metric of the checkpoint saved last with the best one so far."""
        if not self.metric or self._saved == self._begun or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsCsv):
                continue
            self._warn_if_never_measured(logger.columns())
            value = logger.latest(self.metric, self._saved - self.every_steps, self._saved)
            better = self._best is None or value < self._best.value
            # In the file's order of events: a best checkpoint is on disk before best.json names it.
            if value == value and better and self._saved in dict(checkpoints(self.folder)):
                self._best = Best(self._saved, self.metric, value)
                try:
                    write_json(self.folder / "best.json", self._best._asdict())
                except UserError as error:
                    rank_zero_warn(f"{error}; going on without it")
                self._delete_old()

    def _warn_if_never_measured(self, columns: set[str]) -> None:
        # Before the first "loss" nothing was logged yet that a training step measures.
        regular = self._saved % self.every_steps == 0
        if self.metric not in columns and "loss" in columns and regular and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"checkpoint.best: metrics.csv has no column {self.metric!r} by step {self._saved}"
                f"{nearest(self.metric, columns)}; until it has, no checkpoint is kept as the best"
            )

    def _delete_old(self) -> None:
        # A damaged newer one, from which this run fell back, must not count.
        found = [path for step, path in checkpoints(self.folder) if step <= self._saved]
        best = None if self._best is None else self.folder / f"step-{self._best.step:08d}.ckpt"
        for old in found[: -self.keep]:
            if old != best:
                try:
                    sharded_checkpoint.remove(old)
                except OSError as error:
                    rank_zero_warn(f"cannot delete {old}: {error.strerror}")


def _count_passes(trainer: Trainer) -> None:
    """Begin with a whole optimizer step where a run goes on with another ``trainer.accumulate``: Lightning
    steps when the number of passes so far is a multiple of it."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    progress.increment_by(-progress.ready % trainer.accumulate_grad_batches)
