"""Adversarial fine-tuning: this section of the training configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fmtt.errors import UserError


@dataclass
class AdversarialConfig:
    """A discriminator of samples, trained beside the student that it judges; see train.adversarial.

    What it holds samples against is the data as it is: guidance by a scale above 1 pulls the other way.
    """

    weight: float = 0.0
    """Of the adversarial term: how large its gradient is at the student's last layer, relative to that of the
    objective. 0 for none."""
    start_step: int = 0
    """Steps of the student before the discriminator is trained and used."""
    warmup: int = 0
    """Steps, from then on, over which the weight grows linearly to its value."""
    from_noise: float = 0.5
    """Share of the judged samples that are one jump from noise; the others jump from x_s to t = 1."""
    network: str = ""
    """The discriminator's trunk, a name in fmtt.models.checkpoint.NETWORKS; the student's if empty."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that network, apart from the data's shape. It takes labels where the student does."""
    lr: float = 2e-4
    """Its learning rate (Adam); it follows the student's schedule."""
    betas: list[float] = field(default_factory=lambda: [0.0, 0.99])
    r1: float = 1.0
    """gamma of gamma/2 |grad D|^2 at data; 0 for none."""
    r2: float = 1.0
    """gamma of gamma/2 |grad D|^2 at the student's samples; 0 for none."""
    penalty_step: float = 0.01
    """Size, in the data's units, of the random steps from whose differences |grad D| is estimated; 0 for the
    gradient itself, which is differentiated again."""

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        ranges = {
            "weight": (self.weight, 0, math.inf),
            "start_step": (self.start_step, 0, math.inf),
            "warmup": (self.warmup, 0, math.inf),
            "from_noise": (self.from_noise, 0, 1),
            "r1": (self.r1, 0, math.inf),
            "r2": (self.r2, 0, math.inf),
            "penalty_step": (self.penalty_step, 0, math.inf),
        }
        for key, (value, low, high) in ranges.items():
            if not low <= value <= high or math.isinf(value):  # also true of nan
                wanted = f"be at least {low}" if high == math.inf else f"lie in [{low}, {high}]"
                raise UserError(f"adversarial.{key} must {wanted}, got {value}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"adversarial.lr must be positive, got {self.lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"adversarial.betas must be two numbers in [0, 1), got {self.betas}")
