"""The relativistic pairing loss and its zero-centred gradient penalties (R3GAN, arXiv 2501.05441).

D judges pairs: how much more real is this datum than that sample. AYF (arXiv 2506.14603) fine-tunes flow maps
with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmtt.tensor import dot
from fmtt.types import Cond

Judge = Callable[[Tensor, Cond | None], Tensor]
"""D: x (B, *D), cond to (B,)."""


def of_student(real: Tensor, fake: Tensor) -> Tensor:
    """log(1 + exp(D(real) - D(fake))) of pairs, (B,) each: falls as samples look more real than data
    (2501.05441, eq. 2)."""
    return F.softplus(real - fake)


def of_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """log(1 + exp(D(fake) - D(real))) of pairs, (B,) each. Where samples follow the data's law no D has a
    mean below log 2, which is that of a constant D."""
    return F.softplus(fake - real)


def judged(
    judge: Judge, x: Tensor, cond: Cond | None, *, step: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(D(x), |grad_x D(x)|^2), (B,) each, both with a gradient for the weights of D.

    R1 is the mean of the second at data, R2 at samples (R1: arXiv 1801.04406).

    Args:
        step: h of ((D(x + h n) - D(x)) / h)^2 with n ~ N(0, I), whose mean over n is |grad D|^2 + O(h^2): the
            approximate penalty of arXiv 2501.08316, section 3.4, divided by h^2. 0 for the gradient itself.
    """
    if step > 0:
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        logits = judge(x, cond)
        return logits, ((judge(x + step * noise, cond) - logits) / step).square()
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        logits = judge(x, cond)
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return logits, dot(slope, slope)
