"""How much each sample counts: from losses per sample, mean squares of a residual, to what is minimised.

Every part is a function of the residual's size and of the times, so that objectives know nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmtt.errors import UserError
from fmtt.models.embeddings import TimeEmbedding
from train.config_objective import ObjectiveConfig
from train.config_times import WeightingConfig
from train.losses import have_times
from train.losses.base import Times

FLOOR = 0.02
"""Times left and gaps count as at least this much: powers of them stay finite."""


def time_left_weight(times: Times, power: float, floor: float = FLOOR) -> Tensor:
    """(1 - t)^power, shape (B,).

    Objectives are written for velocities, and near t = 1 a large error of the velocity is a small error
    of the endpoint: power 2 weighs the endpoint that a velocity points to, power 0 the velocity itself.
    """
    return (1 - times.t).clamp_min(floor).pow(power)


def gap_weight(times: Times, power: float, floor: float = FLOOR) -> Tensor:
    """(t - s)^power where s < t and 1 where s = t, shape (B,).

    Power 2 weighs the error of the landing point X_{s,t}; AYF's gradient (arXiv 2506.14603) has power 1.
    """
    gap = times.t - times.s
    return torch.where(gap > 0, gap.clamp_min(floor).pow(power), torch.ones_like(gap))


def pseudo_huber(mean_square: Tensor, c: float) -> Tensor:
    """sqrt(|r|^2 + c^2) - c for |r|^2 (B,): quadratic below c, linear above (arXiv 2310.14189, eq. 9).

    |r| is a root mean square, so that c does not depend on the data's dimension d: the paper's c is this
    one times sqrt(d).
    """
    return (mean_square + c**2).sqrt() - c


def normalised(mean_square: Tensor, c: float) -> Tensor:
    """|r|^2 / sg(|r| + c) for |r|^2 (B,): its gradient is that of a residual r / (|r| + c).

    Tangent normalisation (arXiv 2410.11081, section 4; AYF has c = 0.1), |r| being a root mean square.
    """
    return mean_square / (mean_square.detach().sqrt() + c)


class LearnedWeight(nn.Module):
    """w(s, t), (B,) and (B,) to (B,): two time embeddings and a linear layer. It starts as zero.

    Minimising e^-w L + w over w gives e^w = E[L | s, t]: every (s, t) then counts alike (arXiv 2312.02696,
    section 4; the form e^-w L + w is that of 2505.18825).
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = TimeEmbedding(width, max_frequency=2.0, num_frequencies=8)
        self.second = TimeEmbedding(width, max_frequency=2.0, num_frequencies=8)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(s.device.type, enabled=False):
            return self.out(F.silu(self.first(s) + self.second(t))).squeeze(1)


class Weighting(nn.Module):
    """``weighting(per_sample, times) -> (B,)``, whose mean is minimised; ``times`` are the loss's own, see
    train.losses.times_of.

    The metric (pseudo-Huber, normalised or the mean square itself), times (1 - t)^a (t - s)^b, and then
    e^-w L + w where w is learned. Only a learned weighting has parameters; they are trained with the
    student's and are part of training checkpoints, not of exports.
    """

    def __init__(self, config: WeightingConfig | None = None, time_left_power: float = 0.0) -> None:
        super().__init__()
        self.config, self.time_left_power = config or WeightingConfig(), time_left_power
        self.learned = LearnedWeight() if self.config.learned else None

    def forward(self, per_sample: Tensor, times: Times) -> Tensor:
        loss, c = per_sample, self.config
        if c.pseudo_huber > 0:
            loss = pseudo_huber(loss, c.pseudo_huber)
        elif c.tangent_normalisation > 0:
            loss = normalised(loss, c.tangent_normalisation)
        loss = time_left_weight(times, self.time_left_power) * gap_weight(times, c.gap_power) * loss
        if self.learned is None:
            return loss
        w = self.learned(times.s, times.t)
        return torch.exp(-w) * loss + w


def check_times(objective: ObjectiveConfig, weighting: WeightingConfig) -> None:
    """Refuse weights by times where samples have several.

    Raises:
        UserError: naming the weight.
    """
    by_times = {
        "objective.time_left_power": objective.time_left_power != 0,
        "weighting.gap_power": weighting.gap_power != 0,
        "weighting.learned": weighting.learned,
    }
    names = objective.weights()
    for key, used in by_times.items():
        if used and not have_times(names):
            raise UserError(
                f"{key} weighs samples by their times, of which {' + '.join(names)} has several: leave it out"
            )


class Ramp(NamedTuple):
    """The factor r of a derivative term: from 0 to ``end`` over ``steps`` steps, linearly, then constant.

    AYF (arXiv 2506.14603, section 3.4) ramps to 0.99. With ``steps`` 0 it is 1 throughout.
    """

    steps: int = 0
    end: float = 0.99

    def at(self, step: int) -> float:
        """r after ``step`` optimizer steps."""
        return 1.0 if self.steps == 0 else self.end * min(1.0, step / self.steps)
