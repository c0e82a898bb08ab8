"""The Lightning module: an objective on a student flow map, with or without a frozen teacher."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from data.batch import Batch
from data.counter import random_bits
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.types import VelocityField
from train.adversarial import Adversarial
from train.config import Config, OptimizerConfig
from train.ema import Ema
from train.losses import FlowMapLoss, times_of
from train.losses.base import Times, sample_path
from train.optimizer import MuonWithAdamW, learning_rate_factor, split_parameters
from train.strategy import is_sharded, mesh_of, shard
from train.tangents import Differentiated
from train.teacher import Guidance, SelfTeacher, Teacher
from train.times import TimeSampler
from train.weighting import Ramp, Weighting

REMEDY = (
    "earlier checkpoints are intact: lower optimizer.lr and optimizer.muon_lr, "
    "or use trainer.precision=32-true"
)
CALM = "earlier checkpoints are intact: lower adversarial.lr, or raise adversarial.r1 and adversarial.r2"


class FlowMapModule(LightningModule):
    """Trains ``student``; ``teacher`` gives b_t and never enters checkpoints or gradients.

    Args:
        student: the flow map that is optimised.
        teacher: whose velocity is distilled, frozen; None for the student's own diagonal.
        objective, times: what is minimised and where.
        config: the run's configuration.
        export: what an export says of the student's network: name, args, kind.
        guidance: what is done to conditions and velocities; none if omitted.
        adversarial: a discriminator whose verdict joins the loss; none if omitted.
    """

    def __init__(
        self,
        student: NeuralFlowMap,
        teacher: Teacher | None,
        objective: FlowMapLoss,
        times: TimeSampler,
        config: Config,
        export: dict[str, Any],
        guidance: Guidance | None = None,
        adversarial: Adversarial | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        # In a tuple the teacher is no submodule: no state_dict entries, no DDP buckets.
        self._teacher = (teacher,)
        ramp = Ramp(config.weighting.ramp_steps, config.weighting.ramp_end)
        self.objective = Differentiated(objective, config.derivative, ramp, lambda: self.global_step)
        self.times, self.config, self.export = times, config, export
        self.weighting = Weighting(config.weighting, config.objective.time_left_power)
        self.guidance = guidance or Guidance()
        # No submodule either: DDP would wait for gradients that the student's loss does not give.
        self.adversarial = adversarial
        target, half_lives = config.ema.target_half_life, list(config.ema.half_lives)
        self.ema = Ema(student, half_lives + [target] * (target not in (0, *half_lives)))
        self._own: SelfTeacher | None = None
        self._micro_step, self._last_step = 0, -1

    @property
    def teacher(self) -> Teacher | None:
        return self._teacher[0]

    @property
    def own(self) -> SelfTeacher:
        """The student's diagonal, with its own weights or those of ``ema.target_half_life``."""
        if self._own is None:  # not before the averages are on the student's device
            target = self.config.ema.target_half_life
            average = self.ema.averages[self.ema.half_lives.index(target)] if target else None
            self._own = SelfTeacher(self.student, average)
        return self._own

    def velocity(self) -> VelocityField:
        """What objectives take for b_t."""
        # A student that learns guidance from guided data has it in its diagonal already.
        return self.own.velocity if self.teacher is None else self.guidance.guided(self.teacher.velocity)

    def setup(self, stage: str) -> None:
        if mesh_of(self.trainer.strategy) is None:  # else they are cut first: whole they may not fit
            self.ema.to(self.device)
            self._move_teachers()
            if self.adversarial is not None:
                self.adversarial.to(self.device)

    def _move_teachers(self) -> None:
        for part in (self.teacher, self.guidance.weak):
            if isinstance(part, NeuralFlowMap):
                part.to(self.device)

    def configure_model(self) -> None:
        """Cut student, teachers, averages and a learned weighting into pieces, where the strategy does so."""
        mesh = mesh_of(self.trainer.strategy)
        if mesh is None or is_sharded(self.student):
            return
        half_lives, target = self.ema.half_lives, self.config.ema.target_half_life
        average = copy.deepcopy(self.student).requires_grad_(False) if target else None
        shard(self.student, mesh, (self.teacher, self.guidance.weak))
        self._move_teachers()  # what of them is no weight
        self.ema = Ema(self.student, half_lives)
        if average is not None:
            shard(average, mesh)
            # A pass puts together a network's own pieces: so they are the average's.
            weights = dict(average.named_parameters())
            own = self.ema.averages[half_lives.index(target)]
            own.update({name: weights[name].detach() for name in own})
            self._own = SelfTeacher(average)
        if self.weighting.learned is not None:
            fully_shard(self.weighting, mesh=mesh)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Refuse labels that the student cannot take, which would fail deep inside the network."""
        classes = int(self.export["network_args"].get("num_classes", 0))
        if batch_idx > 0 or classes == 0:
            return
        labels = None if batch.cond is None else batch.cond.get("label")
        if labels is None:
            raise UserError("student.args.num_classes: data.source has no labels; set it to 0 or give others")
        if int(labels.max()) > classes:
            raise UserError(
                f"student.args.num_classes is {classes}, data.source has label {int(labels.max())}"
            )

    def step_generator(self) -> torch.Generator:
        """Noise and times of this micro-batch: a function of seed, step and rank, so resuming is exact
        and no two ranks ever share a draw."""
        step = self.global_step
        self._micro_step = self._micro_step + 1 if step == self._last_step else 0
        self._last_step = step
        bits = random_bits(self.config.seed, step, self._micro_step, self.global_rank)
        return torch.Generator(self.device).manual_seed(int(bits[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator = self.step_generator()
        x_1, cond = batch
        x_0 = torch.randn(x_1.shape, generator=generator, device=x_1.device, dtype=x_1.dtype)
        times = self.times.sample(x_1.shape[0], generator, x_1.device, self.global_step)
        path = sample_path(self.student.interpolant, x_0, x_1, times.s)
        cond = self.guidance.draw(cond, x_1.shape[0], generator, x_1.device)
        if self.teacher is None:
            path = self.guidance.guided_data(path, times, cond, self.own)
        out = self.objective(self.student, self.velocity(), path, times, cond)
        own = times_of(self.config.objective.weights(), times)
        loss, logs = self.weighting(out.per_sample.float(), own or times).mean(), out.logs
        if self.adversarial is not None and self.adversarial.active(self.global_step):
            given = (self.student, path, times, cond, generator, self.global_step)
            loss, verdict = self.adversarial(loss, *given)
            logs = {**logs, **verdict}
        bad = not bool(torch.isfinite(loss))
        if self.trainer.strategy.reduce_boolean_decision(bad, all=False):
            # All ranks stop together; those that saw it say so.
            raise UserError(self._not_finite(out.per_sample, times)) if bad else SystemExit(2)
        self._log(loss, out.per_sample.detach().float(), logs, own)
        return loss

    def _log(self, loss: Tensor, per_sample: Tensor, logs: dict[str, Tensor], times: Times | None) -> None:
        self.log("loss", loss, prog_bar=True)
        here = None if times is None else times.s == times.t
        parts = () if here is None else (("loss_diagonal", here), ("loss_off_diagonal", ~here))
        # Parts that hold no sample of this batch are left out rather than logged as zero.
        for name, mask in parts:
            if bool(mask.any()):
                self.log(name, per_sample[mask].mean())
        for name, value in logs.items():
            self.log(name, value)

    def _not_finite(self, per_sample: Tensor, times: Times) -> str:
        bad = (~torch.isfinite(per_sample)).nonzero().flatten()
        if len(bad) == 0 and self.adversarial is not None and self.adversarial.active(self.global_step):
            return f"the loss with the discriminator is not finite at step {self.global_step}; {CALM}"
        where = f"s={times.s[bad[0]]:.3f}, t={times.t[bad[0]]:.3f}" if len(bad) else "an overflow of the mean"
        return (
            f"the loss is not finite at step {self.global_step} ({len(bad)} of {len(per_sample)} samples, "
            f"first at {where}); {REMEDY}"
        )

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        trained = (*self.student.parameters(), *self.weighting.parameters())
        parameters = [p for p in trained if p.grad is not None]
        clip = self.config.optimizer.clip
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else float("inf"))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # In float16 the loss scaler expects overflows and skips their steps.
        if self.trainer.precision != "16-mixed" and not bool(torch.isfinite(norm)):
            message = f"the gradient is not finite at step {self.global_step}; {REMEDY}"
            raise UserError(message) if self.trainer.is_global_zero else SystemExit(2)
        self.log("grad_norm", norm)

    def configure_optimizers(self) -> dict[str, Any]:
        c: OptimizerConfig = self.config.optimizer
        matrices, others = split_parameters(self.student)
        others += self.weighting.parameters()
        if c.muon_lr == 0:
            matrices, others = [], [*matrices, *others]
        optimizer = MuonWithAdamW(
            matrices,
            others,
            muon_lr=c.muon_lr,
            lr=c.lr,
            betas=(c.betas[0], c.betas[1]),
            weight_decay=c.weight_decay,
        )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate of the step after ``step`` steps, relative to the highest."""
        c, total = self.config.optimizer, self.config.max_steps
        options = {"warmup": c.warmup, "decay_share": c.decay_share, "final": c.final}
        return learning_rate_factor(step, max_steps=total, **options)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.adversarial is not None and self.adversarial.active(self.global_step):
            norm = self.adversarial.step(self.rate(self.global_step))
            if not math.isfinite(norm):
                message = f"the discriminator's gradient is not finite at step {self.global_step}; {CALM}"
                raise UserError(message) if self.trainer.is_global_zero else SystemExit(2)
        # Here and not at the batch's end: callbacks, which save and evaluate, run before the module there.
        self.ema.update(self.student, self.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["export"] = self.export
        if self.adversarial is not None:
            checkpoint["adversarial"] = self.adversarial.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
        if self.adversarial is not None:
            self.adversarial.load_state_dict(checkpoint["adversarial"])
