"""What is minimised and under which guidance: these sections of the training configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fmtt.errors import UserError


@dataclass
class ObjectiveConfig:
    """What is minimised."""

    name: str = ""
    """A name in train.losses.OBJECTIVES; with neither name nor terms it is lsd."""
    terms: dict[str, float] = field(default_factory=dict)
    """A weighted sum instead, such as {psd_m: 1.0, diagonal: 1.0}. In a sum of both kinds, flow_matching and
    diagonal are evaluated on the samples with s = t alone (times.diagonal is their share of the batch) and
    all others on the samples with s < t alone."""
    time_left_power: float = 0.0
    """The loss of a sample is weighed by (1 - t) to this power, t the end of the objective's jump: s for
    flow_matching and diagonal, 1 for consistency."""

    def weights(self) -> dict[str, float]:
        """The objectives that are summed, by name."""
        return dict(self.terms) or {self.name or "lsd": 1.0}

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        if self.name and self.terms:
            raise UserError(f"objective.name ({self.name}) and objective.terms are both given: set one to ''")
        for name, weight in self.terms.items():
            if not 0 < weight < math.inf:
                raise UserError(f"objective.terms.{name} must be positive, got {weight}")


@dataclass
class GuidanceConfig:
    """Guidance of the velocity that is learned; see train.teacher."""

    method: str = ""
    """Empty for none. cfg: b(null) + w (b(c) - b(null)). autoguidance: b_weak + w (b - b_weak)."""
    weak: str = ""
    """Export of autoguidance's weak velocity model."""
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """w is uniform in [low, high], drawn per sample; where low < high the student is conditioned on it."""
    interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Times at which guidance acts (arXiv 2404.07724); outside w is 1."""
    dropout: float = 0.0
    """Share of samples whose label is replaced by the null label, with w = 1."""

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        if not 0 <= self.dropout <= 1:
            raise UserError(f"guidance.dropout must lie in [0, 1], got {self.dropout}")
        for key, values, top in (("scale", self.scale, math.inf), ("interval", self.interval, 1.0)):
            if len(values) != 2 or not 0 <= values[0] <= values[1] <= top or math.isinf(values[1]):
                raise UserError(f"guidance.{key} must be [low, high] with 0 <= low <= high, got {values}")
