"""A two-time transformer whose velocity is another one's, exactly: its weights move away from those of a
velocity model as the jump gets longer."""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import Tensor, nn

from fmtt.models.dit import DiT
from fmtt.models.norm import rms_norm
from fmtt.models.principal import PrincipalEmbedding
from fmtt.models.slide import Slide, in_common, share_of_time_left
from fmtt.types import Cond


class AnchoredDiT(nn.Module):
    """Two :class:`DiT` of one shape, ``anchor`` and ``own``, between whose weights this network's lie.

    A jump from s to t takes the share (t - s) / (1 - s) of the time that is left, and the weights of the
    body are that share of the way from the anchor's to its own; so are the two modulations. The anchor is
    the velocity model that is distilled and does not train: u_{s,s} is its velocity, and the error of a
    short jump shrinks with its length. A map whose own weights do all (arXiv 2406.07507) has at s = t the
    error that it has elsewhere, so that many small steps with it are no better than a few. A jump to t = 1
    uses its own weights alone, but for the last thousandth of the time.

    Where all samples share s and t, as in sampling, the weights are merged: a pass costs what one of a
    ``DiT`` does and the merging as much as a dozen samples. Else, as in training or where tilting needs the
    derivative in t, it costs nearly two.

    Args: those of :class:`DiT`, for both.
    """

    __signature__ = inspect.signature(DiT)

    def __init__(self, data_shape: tuple[int, ...], **args: Any) -> None:
        super().__init__()
        shape = cast(tuple[int, int, int], data_shape)
        self.anchor, self.own = DiT(shape, **args).requires_grad_(False), DiT(shape, **args)
        if isinstance(self.own.embed, PrincipalEmbedding):
            self.own.embed.register_buffer("basis", None)  # the anchor's serves both

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        anchor, own = self.anchor, self.own
        s, t = in_common(s), in_common(t)
        slide = Slide(share_of_time_left(s, t))
        starts, ends = anchor.modulations(s, s, cond), own.modulations(s, t, cond)
        modulation, ending = (slide.between(a, b) for a, b in zip(starts, ends, strict=True))
        tokens = slide.linear(anchor.first, own.first, anchor.features(x))
        positions = slide.between(anchor.positions[None], own.positions[None])
        tokens = tokens.reshape(len(x), *own.positions.shape) + positions
        for fixed, block in zip(anchor.all_blocks, own.all_blocks, strict=True):
            tokens = block(tokens, modulation, fixed, slide)
        shift, scale = ending.unsqueeze(2).unbind(1)
        return own.image(slide.linear(anchor.final, own.final, rms_norm(tokens) * (1 + scale) + shift))
