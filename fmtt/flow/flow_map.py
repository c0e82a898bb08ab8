"""A network that carries a two-time flow map: X_{s,t}(x) = x + (t - s) u_{s,t}(x).

X_{s,s} = id and velocity = u_{t,t} hold by construction (arXiv 2406.07507, 2505.18825), so that no
loss spends effort on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmtt.flow.interpolant import Interpolant
from fmtt.tensor import expand_like, expanded_time
from fmtt.types import Cond, Time

PREDICTIONS = ("velocity", "endpoint")
MIN_TIME_LEFT = 0.005
"""Floor of 1 - s where an endpoint prediction is divided by it."""


class NeuralFlowMap(nn.Module):
    """A flow map over a network ``network(x, s, t, cond) -> (B, *D)``.

    Args:
        network: a module called with x (B, *D), s (B,), t (B,), cond; it returns (B, *D).
        interpolant: the path that the velocity belongs to.
        data_shape: *D.
        prediction: what the network's output F means. ``velocity``: u = F. ``endpoint``:
            u = (F - x) / (1 - s), where F is the point that a straight line along u reaches at
            time 1; on the linear path F_{s,s} is the denoiser and F_{s,1} is X_{s,1}. It stays on
            the data manifold, so wide patches need not carry the noise through the network.
        bidirectional: whether t < s is allowed.
    """

    def __init__(
        self,
        network: nn.Module,
        interpolant: Interpolant,
        data_shape: tuple[int, ...],
        *,
        prediction: str = "velocity",
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}")
        self.network = network
        self.interpolant = interpolant
        self.data_shape = tuple(data_shape)
        self.prediction = prediction
        self.bidirectional = bidirectional
        self.config: dict[str, Any] = {}
        """What the export it was loaded from says of it; empty for a map in training."""

    def average_velocity(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """u_{s,t}(x), shape (B, *D): the mean velocity along the trajectory from s to t."""
        s, t = expanded_time(s, x), expanded_time(t, x)
        out = self.network(x, s, t, cond).to(x.dtype)  # autocast leaves a narrower dtype
        if self.prediction == "velocity":
            return out
        return (out - x) / expand_like((1 - s).clamp_min(MIN_TIME_LEFT), x).to(x.dtype)

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """X_{s,t}(x), shape (B, *D).

        Raises:
            ValueError: when some t < s and the map is not bidirectional.
        """
        s, t = expanded_time(s, x), expanded_time(t, x)
        if not self.bidirectional and not torch.compiler.is_compiling() and bool((t < s).any()):
            raise ValueError("this flow map goes forward only: t < s needs a bidirectional export")
        return x + expand_like(t - s, x).to(x.dtype) * self.average_velocity(x, s, t, cond)

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x) = u_{t,t}(x), shape (B, *D)."""
        return self.average_velocity(x, t, t, cond)
