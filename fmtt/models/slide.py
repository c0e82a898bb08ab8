"""Weights that depend on the length of a jump: between those of two layers alike."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fmtt.tensor import expand_like

MIN_TIME_LEFT = 1e-3
"""Floor of 1 - s in the share of the remaining time that a jump takes."""


def in_common(t: Tensor) -> Tensor:
    """(1,) if ``t`` (B,) is one time expanded to all samples, else ``t``.

    A time that a derivative is taken with respect to stays as it is: each sample has its own derivative.
    (Of nested transforms of torch.func only the innermost is seen: there, clone the time first.)
    """
    if t.stride(0) != 0 or t.requires_grad or forward_ad.unpack_dual(t).tangent is not None:
        return t
    return t[:1]


def share_of_time_left(s: Tensor, t: Tensor) -> Tensor:
    """The share of the time from s to 1 that a jump from s to t takes."""
    return (t - s) / (1 - s).clamp_min(MIN_TIME_LEFT)


class Slide(NamedTuple):
    """Values a share of the way from those of the anchor (share 0) to the map's own (share 1).

    Args:
        share: (B,), or (1,) where all samples have the same.
    """

    share: Tensor

    def between(self, anchor: Tensor, own: Tensor) -> Tensor:
        """Values (B, ...) or (1, ...) between two such; exact at both ends."""
        share = expand_like(self.share, own).to(own.dtype)
        return (1 - share) * anchor + share * own

    def linear(self, anchor: nn.Linear, own: nn.Linear, x: Tensor) -> Tensor:
        """The layer with weights in between, on x (B, ..., in). One product where samples share them."""
        if len(self.share) != 1:
            return self.between(anchor(x), own(x))
        weight = self.between(anchor.weight[None], own.weight[None])[0]
        return F.linear(x, weight, self.between(anchor.bias[None], own.bias[None])[0])
