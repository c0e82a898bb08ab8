"""Adversarial fine-tuning: a discriminator beside the student, whose verdict joins the student's loss.

AYF (arXiv 2506.14603) ends with it: the relativistic loss of train.losses.relativistic, weighed by a ratio of
gradients (VQGAN, arXiv 2012.09841, eq. 7), beside the objective that distils.

The discriminator has an optimizer of its own, which steps once per step of the student's and is none of the
trainer's: steps, schedules, averages and checkpoints count the student's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Adam

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.tensor import expand_like
from fmtt.types import Cond
from train.config_adversarial import AdversarialConfig
from train.discriminator import Discriminator
from train.losses.base import PathSample, Times
from train.losses.relativistic import judged, of_discriminator, of_student

LARGEST_RATIO = 1e4
"""Of the gradients' norms: a discriminator that knows nothing yet has none to speak of."""


def mean_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """Every tensor's mean over the processes, which all call this."""
    if not distributed.is_available() or not distributed.is_initialized():
        return tensors
    flat = torch.cat([t.flatten() for t in tensors])
    distributed.all_reduce(flat)
    parts = (flat / distributed.get_world_size()).split([t.numel() for t in tensors])
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]


def last_layer(student: NeuralFlowMap) -> nn.Parameter:
    """The last matrix of the student's network in training."""
    return [p for p in student.network.parameters() if p.requires_grad and p.ndim > 1][-1]


def gradient_ratio(objective: Tensor, adversarial: Tensor, weight: nn.Parameter) -> Tensor:
    """|grad objective| / |grad adversarial| at ``weight``, of their means over all ranks, a scalar; at most
    LARGEST_RATIO."""
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (objective, adversarial)]
    one, other = mean_over_ranks(gradients)
    return (one.norm() / other.norm().clamp_min(1e-30)).clamp_max(LARGEST_RATIO)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block what is computed leaves no gradient in the weights of ``module``."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


class Adversarial:
    """The discriminator, its optimizer, and what it adds to a loss.

    Args:
        discriminator: equal on all ranks.
        accumulate: passes per optimizer step.
    """

    def __init__(self, discriminator: Discriminator, config: AdversarialConfig, accumulate: int = 1) -> None:
        self.discriminator, self.config, self.accumulate = discriminator, config, accumulate
        betas = (config.betas[0], config.betas[1])
        self.optimizer = Adam(discriminator.parameters(), lr=config.lr, betas=betas)

    def active(self, step: int) -> bool:
        """Whether it takes part after ``step`` steps of the student."""
        return step >= self.config.start_step

    def weight(self, step: int) -> float:
        """Of the student's term, relative to the ratio of gradients."""
        grown = (step - self.config.start_step + 1) / (self.config.warmup + 1)
        return self.config.weight * min(1.0, grown)

    def samples(
        self,
        student: NeuralFlowMap,
        path: PathSample,
        times: Times,
        cond: Cond | None,
        generator: torch.Generator,
    ) -> Tensor:
        """X_{s,1}(x_s), (B, *D), with s = 0 for a share of the samples."""
        uniform = torch.rand(len(path.x_s), generator=generator, device=path.x_s.device)
        jumps = uniform < self.config.from_noise
        x = torch.where(expand_like(jumps, path.x_s), path.x_0, path.x_s)
        s = torch.where(jumps, 0.0, times.s)
        return student(x, s, torch.ones_like(s), cond)

    def __call__(
        self,
        objective: Tensor,
        student: NeuralFlowMap,
        path: PathSample,
        times: Times,
        cond: Cond | None,
        generator: torch.Generator,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the student's loss, a scalar, and what to log). The discriminator's gradient is left in its
        weights: each sees the other as it is before this step.

        Args:
            objective: the mean of what is minimised without it.
            step: steps of the student so far.
        """
        fake, real = self.samples(student, path, times, cond, generator).float(), path.x_1.float()
        with torch.autocast(real.device.type, enabled=False):  # differences of logits need their digits
            with frozen(self.discriminator):
                verdict = of_student(self.discriminator(real, cond), self.discriminator(fake, cond)).mean()
            logs = self._teach(real, fake.detach(), cond, generator)
        ratio = gradient_ratio(objective, verdict, last_layer(student))
        logs |= {"student": verdict.detach(), "ratio": ratio, "objective": objective.detach()}
        total = objective + self.weight(step) * ratio * verdict
        return total, {f"adversarial/{name}": value for name, value in logs.items()}

    def _teach(
        self, real: Tensor, fake: Tensor, cond: Cond | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        c, judge = self.config, self.discriminator
        on_data, r1 = judged(judge, real, cond, step=c.penalty_step, generator=generator)
        on_samples, r2 = judged(judge, fake, cond, step=c.penalty_step, generator=generator)
        verdict = of_discriminator(on_data, on_samples).mean()
        loss = verdict + c.r1 / 2 * r1.mean() + c.r2 / 2 * r2.mean()
        (loss / self.accumulate).backward()
        margin = (on_data - on_samples).mean()
        logs = {"discriminator": verdict, "margin": margin, "r1": r1.mean(), "r2": r2.mean()}
        return {name: value.detach() for name, value in logs.items()}

    def step(self, factor: float) -> float:
        """One step of the discriminator, at ``factor`` of its learning rate.

        Returns:
            The norm of its gradient, the same on all ranks; where that is not finite no step is taken.
        """
        parameters = [p for p in self.discriminator.parameters() if p.grad is not None]
        gradients = mean_over_ranks([p.grad for p in parameters if p.grad is not None])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if norm < float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = factor * self.config.lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def to(self, device: torch.device) -> None:
        """Move it to where the student is, before any step."""
        self.discriminator.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimizer's moments."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
