"""What a run shows while it trains: look-ahead error, sample grids, progress lines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

import fmtt
from fmtt import png
from fmtt.errors import UserError
from fmtt.evaluation.lookahead import Trajectory, lookahead_errors, reference
from fmtt.tensor import take_cond
from fmtt.types import Cond, VelocityField
from train.config import EvaluateConfig
from train.module import FlowMapModule
from train.sources import first_conditions
from train.strategy import cond_of_rank_zero, mesh_of, of_rank_zero

EVALUATION_SEED = 12345
SAMPLE_STEPS = (1, 2, 4)


class Evaluation(Callback):
    """Measures the averaged student every few steps, on rank 0.

    With a teacher: RMSE of the 1/2/4-step look-ahead and of the denoiser against the teacher's ODE at
    t = 0, 0.2, 0.4 (logged as ``lookahead/map_1@0.2``). With teacher: self, against the ODE of the averaged
    student's own diagonal, under names that begin with ``lookahead_own``: a map that agrees with a poor
    velocity has small ones too. For images: a grid of 1/2/4-step samples.

    Args:
        also_every: steps of checkpoints that the errors tell the best of: there they are measured too. 0 for
            none.
    """

    TIMES = (0.0, 0.2, 0.4)

    def __init__(self, folder: Path, config: EvaluateConfig, also_every: int = 0) -> None:
        self.folder, self.config, self.also_every = folder, config, also_every
        self._trajectory: Trajectory | None = None
        self._cond: Cond | None = None
        self._last = -1

    @classmethod
    def columns(cls, *, own: bool) -> list[str]:
        """What the errors are called in metrics.csv; ``own``: without a teacher."""
        names = [*(f"map_{k}" for k in SAMPLE_STEPS), "denoiser"]
        return [f"{'lookahead_own' if own else 'lookahead'}/{n}@{t:g}" for n in names for t in cls.TIMES]

    def _regular(self, trainer: Trainer, step: int) -> bool:
        return step % self.config.every_steps == 0 or step >= trainer.max_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self._regular(trainer, step) or (self.also_every > 0 and step % self.also_every == 0)
        # The other ranks wait where gradients next meet; nothing below may talk to them. Where every pass
        # takes all ranks, all do the same.
        together = mesh_of(trainer.strategy) is not None
        if due and step != self._last and (together or trainer.is_global_zero):
            self._last = step
            if batch.cond is not None and self._cond is None:
                self._cond = cond_of_rank_zero(trainer.strategy, lambda: self._read_conditions(pl_module))
            self.evaluate(trainer, pl_module, step)

    @torch.no_grad()
    def evaluate(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Log the errors and, where it is regular, write the grid of ``step``."""
        assert isinstance(module, FlowMapModule)
        student, metrics = module.student, {}
        was_training = student.training
        student.eval()
        with module.ema.swapped_in(student):
            if module.export["kind"] == "flow_map" and self.config.num_samples > 0:
                metrics |= self._lookahead(module)
            images = png.is_image(student.data_shape) and self.config.grid_samples > 0
            if images and self._regular(trainer, step):
                self._write_grid(module, step, write=trainer.is_global_zero)
        student.train(was_training)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)

    def _lookahead(self, module: FlowMapModule) -> dict[str, float]:
        """RMSE by name; nothing while a student in training has a diagonal that cannot be integrated."""
        own = module.teacher is None
        velocity = module.student.velocity if module.teacher is None else module.teacher.velocity
        try:
            trajectory = self._reference(module, velocity)
        except FloatingPointError as error:
            if not own:
                raise
            rank_zero_warn(f"no look-ahead error at step {self._last}: {error}")
            return {}
        if own:
            self._trajectory = None  # the student's velocity moves on
        errors = lookahead_errors(module.student, trajectory, velocity=velocity, map_steps=SAMPLE_STEPS)
        prefix = "lookahead_own" if own else "lookahead"
        pairs = (
            (n, t, v) for n, values in errors.rmse.items() for t, v in zip(errors.t, values, strict=True)
        )
        return {f"{prefix}/{name}@{t:g}": v for name, t, v in pairs}

    def _reference(self, module: FlowMapModule, velocity: VelocityField) -> Trajectory:
        if self._trajectory is None:
            generator = torch.Generator(module.device).manual_seed(EVALUATION_SEED)
            n, cond = self._conditions(self.config.num_samples)
            self._trajectory = reference(
                of_rank_zero(module.trainer.strategy, velocity),
                n,
                module.student.data_shape,
                times=self.TIMES,
                cond=cond,
                tol=1e-3,
                generator=generator,
                device=module.device,
            )
        return self._trajectory

    def _read_conditions(self, module: LightningModule) -> Cond | None:
        # Not those of the batch at hand, which is another one when a run continues.
        assert isinstance(module, FlowMapModule)
        most = max(self.config.num_samples, self.config.grid_samples)
        return first_conditions(module.config, min(max(1, most), module.config.batch_size))

    def _conditions(self, wanted: int) -> tuple[int, Cond | None]:
        """(how many samples, their conditions): those of the first samples, at most a batch's number."""
        if not self._cond:
            return wanted, None
        n = min(wanted, len(next(iter(self._cond.values()))))
        return n, take_cond(self._cond, slice(0, n))

    def _write_grid(self, module: FlowMapModule, step: int, *, write: bool) -> None:
        rows = []
        n, cond = self._conditions(self.config.grid_samples)
        step_counts = SAMPLE_STEPS if module.export["kind"] == "flow_map" else (16,)
        for steps in step_counts:
            generator = torch.Generator(module.device).manual_seed(EVALUATION_SEED)
            options = {"cond": cond, "generator": generator, "device": module.device}
            rows.append(fmtt.sample(module.student, n, steps=steps, **options).cpu())
        if not write:
            return
        low, high = module.config.data.value_range
        rgb = png.to_rgb(torch.cat(rows), (low, high))
        try:
            png.write(self.folder / f"step-{step:08d}.png", png.grid(rgb, columns=n))
        except UserError as error:
            rank_zero_warn(f"{error}; going on without it")


class PlainProgress(Callback):
    """One line every ``every_seconds``, for logs that are not a terminal."""

    def __init__(self, every_seconds: float = 15.0) -> None:
        self.every_seconds = every_seconds
        self._start = self._printed = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._printed = time.monotonic()
        self._first = trainer.global_step

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.monotonic(), trainer.global_step
        if now - self._printed < self.every_seconds and step < trainer.max_steps:
            return
        self._printed = now
        rate = (step - self._first) / max(now - self._start, 1e-9)
        left = (trainer.max_steps - step) / rate if rate > 0 else float("inf")
        loss = float(trainer.callback_metrics.get("loss", float("nan")))
        parts = [f"step {step}/{trainer.max_steps}", f"loss {loss:.3g}", f"{rate:.2f} steps/s"]
        shown = trainer.progress_bar_metrics  # what train.throughput puts on a bar
        if "samples_per_s" in shown:
            parts += [f"{shown['samples_per_s']:.0f} samples/s", f"{shown['data_wait']:.1%} waiting for data"]
        print("  ".join([*parts, f"{left:.0f} s left"]), flush=True)


class SyncHint(Callback):
    """Says at the end how to upload what Weights & Biases logged offline."""

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger.experiment.offline and done(trainer):
                folders = Path(logger.experiment.settings.sync_dir).parent / "offline-run-*"
                print(f"Weights & Biases was offline; to upload: wandb sync {folders}", flush=True)


def done(trainer: Trainer) -> bool:
    """Whether the run is at its end, not interrupted."""
    return trainer.global_step >= trainer.max_steps
