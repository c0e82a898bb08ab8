"""Layer norms that keep their kernel in a plain forward and are differentiable through a tangent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


class TangentLayerNorm(nn.LayerNorm):
    """torch's layer norm; written out where the input carries a forward-mode tangent.

    The fused kernel's tangent is right, but the gradient taken through that tangent is wrong without a word.
    """

    def forward(self, input: Tensor) -> Tensor:
        if forward_ad.unpack_dual(input).tangent is None:
            return super().forward(input)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        centred = wide - wide.mean(-1, keepdim=True)
        out = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        if self.elementwise_affine:
            out = out * self.weight
            out = out if self.bias is None else out + self.bias
        return out.to(input.dtype)


def make_differentiable(network: nn.Module) -> None:
    """Turn every plain layer norm of ``network`` over its last dimension into a :class:`TangentLayerNorm`.

    Weights, their names and the values of a plain forward stay what they are.
    """
    for module in network.modules():
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
            module.__class__ = TangentLayerNorm
