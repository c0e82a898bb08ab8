"""Where objectives are evaluated and how their losses are weighed: sections of the training configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fmtt.errors import UserError


@dataclass
class TimesConfig:
    """Where on the path the objective is evaluated; see train.times.TimeSampler."""

    distribution: str = "uniform"
    """uniform | logit_normal | ayf | lookahead."""
    mean: float = 0.0
    std: float = 1.0
    diagonal: float = 0.0
    endpoint: float = 0.0
    whole: float = 0.0
    """Share of samples with s = 0 and t = 1, for the objective trajectory."""
    midpoint: str = "middle"
    s_density: list[float] = field(default_factory=lambda: [1.0])
    """Of lookahead: the density of s, constant on equal parts of [0, 1], up to a factor: [3, 2, 1] puts
    half of the samples into s < 1/3."""
    gap_start: float = 1.0
    """Curriculum: the largest t - s as training starts. It grows linearly to 1."""
    gap_steps: int = 0
    """Steps over which it grows; 0 for no curriculum."""

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        density = self.s_density
        if not density or not all(0 <= v < math.inf for v in density) or sum(density) <= 0:
            raise UserError(f"times.s_density needs weights of which none is negative, got {density}")
        if self.distribution == "lookahead" and self.endpoint == 0:
            raise UserError("times.endpoint must be positive for lookahead: the share of samples with t = 1")
        if not 0 < self.gap_start <= 1:
            raise UserError(f"times.gap_start must lie in (0, 1], got {self.gap_start}")
        if self.gap_steps < 0:
            raise UserError(f"times.gap_steps must be at least 0, got {self.gap_steps}")
        if self.gap_start < 1 and self.gap_steps == 0:
            raise UserError("times.gap_steps must be positive where times.gap_start is below 1")


@dataclass
class WeightingConfig:
    """How much each sample counts; see train.weighting. objective.time_left_power multiplies these."""

    gap_power: float = 0.0
    """(t - s) to this power; samples with t = s count as they are."""
    pseudo_huber: float = 0.0
    """c of sqrt(|r|^2 + c^2) - c in place of |r|^2, |r| the root mean square of the residual; 0 for |r|^2."""
    tangent_normalisation: float = 0.0
    """c of the weight 1 / (|r| + c), by which the gradient is that of a residual r / (|r| + c); AYF has 0.1;
    0 for none."""
    learned: bool = False
    """e^-w L + w with a learned w(s, t)."""
    ramp_steps: int = 0
    """The derivative term of emd, mean_flow, consistency and lmd is multiplied by r, which grows linearly
    from 0 to ramp_end over these steps; 0 for r = 1 throughout."""
    ramp_end: float = 0.99

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        ranges = {
            "gap_power": (self.gap_power, -10, 10),
            "pseudo_huber": (self.pseudo_huber, 0, math.inf),
            "tangent_normalisation": (self.tangent_normalisation, 0, math.inf),
            "ramp_steps": (self.ramp_steps, 0, math.inf),
            "ramp_end": (self.ramp_end, 0, 1),
        }
        for key, (value, low, high) in ranges.items():
            if not low <= value <= high or math.isinf(value):  # also true of nan
                wanted = f"be at least {low}" if high == math.inf else f"lie in [{low}, {high}]"
                raise UserError(f"weighting.{key} must {wanted}, got {value}")
        if self.pseudo_huber > 0 and self.tangent_normalisation > 0:
            raise UserError(
                "weighting.pseudo_huber and weighting.tangent_normalisation: keep one, 0 the other"
            )
