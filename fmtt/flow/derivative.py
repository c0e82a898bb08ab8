"""How directional derivatives are computed: forward-mode AD or finite differences, for a block of code.

:mod:`fmtt.flow.calculus` differentiates with whatever :func:`using` names, by default forward-mode AD::

    with using(FiniteDifference()):
        value, derivative = partial_t(flow_map, x, s, t)
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fmtt.errors import UserError
from fmtt.tensor import expand_like

Tensors = tuple[Tensor, ...]
DERIVATIVES = ("jvp", "finite_difference", "flash_jvp", "auto")
"""What a configuration may ask for; auto is the first of flash_jvp, jvp and finite_difference that agrees
with a float64 reference on the network at hand."""


class Derivative(Protocol):
    """``derivative(f, primals, tangents) -> (f(*primals), its derivative along tangents)``.

    Every primal is batch-first, and sample i of f's result depends on sample i of the primals alone.
    """

    name: ClassVar[str]

    def __call__(
        self, f: Callable[..., Tensor], primals: Tensors, tangents: Tensors
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class ForwardMode:
    """Forward-mode AD, exact up to rounding; about two network passes.

    Attention runs through the math kernel: the fused kernels have no forward-mode derivative.
    """

    name: ClassVar[str] = "jvp"

    def __call__(
        self, f: Callable[..., Tensor], primals: Tensors, tangents: Tensors
    ) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            return cast(tuple[Tensor, Tensor], torch.func.jvp(f, primals, tangents))


STENCILS = {2: ((1, 1 / 2),), 4: ((1, 2 / 3), (2, -1 / 12))}
"""By order: (k, w) of the derivative sum_k w [f(+k h) - f(-k h)] / h."""
BALANCE = {2: 3.0, 4: 7.5}
"""By order: (h omega)^(order + 1) / eps where truncation and rounding of sin(omega x) sum to the least."""


@dataclass(frozen=True)
class FiniteDifference:
    """Central differences, for networks without forward-mode derivatives; order + 1 network passes.

    The error is h^2 f'''/6 from truncation (order 2; h^4 f^(5)/30 for order 4) plus about eps |f| / h from
    rounding. The automatic step minimises their sum for a function with one period over the range of
    times: h = (3 eps)^(1/3) / 2 pi, a power of two, which is 2^-10 in float32 and 2^-19 in float64 (order
    4: (7.5 eps)^(1/5) / 2 pi, 2^-7 and 2^-12). The error is then of order eps^(order / (order + 1)): on
    the networks here 4e-5 to 2e-4 of the derivative in float32 and below 1e-8 in float64. h is the time
    that passes; where a tangent is larger than its primal (root mean square over a sample, at least 1),
    h shrinks so that no argument moves by more than that share of its size.

    f is evaluated up to order / 2 steps outside of the range of times, in full precision even under
    autocast: in bfloat16 the difference of two neighbours is mostly rounding.

    Args:
        order: 2 or 4.
        step: h instead of the automatic one.
    """

    order: int = 2
    step: float | None = None
    name: ClassVar[str] = "finite_difference"

    def steps(self, primals: Tensors, tangents: Tensors) -> Tensor:
        """The step of every sample, (B,).

        Raises:
            UserError: for values in half precision.
        """
        dtype = primals[0].dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"derivative: finite_difference needs float32, the values are {str(dtype)[6:]}: use jvp, "
                "or a trainer.precision that keeps weights in float32"
            )
        optimum = (BALANCE[self.order] * torch.finfo(dtype).eps) ** (1 / (self.order + 1)) / (2 * math.pi)
        h = 2.0 ** round(math.log2(optimum))
        speed = torch.ones_like(primals[0].flatten(1)[:, 0] if primals[0].ndim > 1 else primals[0])
        for primal, tangent in zip(primals, tangents, strict=True):
            size, change = (v.reshape(len(v), -1).square().mean(1).sqrt() for v in (primal, tangent))
            speed = torch.maximum(speed, change / size.clamp_min(1))
        return (self.step or h) / speed.detach()

    def __call__(
        self, f: Callable[..., Tensor], primals: Tensors, tangents: Tensors
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(primals[0].device.type, enabled=False):
            h = self.steps(primals, tangents)

            def moved(k: int) -> Tensor:
                pairs = zip(primals, tangents, strict=True)
                return f(*(p + expand_like(k * h, p) * v for p, v in pairs))

            value = f(*primals)
            change = sum(w * (moved(k) - moved(-k)) for k, w in STENCILS[self.order])
            return value, cast(Tensor, change) / expand_like(h, value).to(value.dtype)


@dataclass(frozen=True)
class FlashForwardMode:
    """Forward-mode AD with the Triton kernel of the package ``jvp_flash_attention``; CUDA only.

    Attention is redirected from torch's scaled_dot_product_attention while f runs. The kernel's backward
    covers its output and not its tangent: only objectives that detach the tangent may use it.
    """

    name: ClassVar[str] = "flash_jvp"

    @staticmethod
    def kernel() -> Any:
        """The kernel's class.

        Raises:
            UserError: where the package is missing.
        """
        try:
            return importlib.import_module("jvp_flash_attention.jvp_attention").JVPAttn
        except ImportError as error:
            raise UserError(
                "derivative: flash_jvp needs the package jvp_flash_attention (pip install "
                "jvp_flash_attention) and a CUDA device; or use derivative: jvp"
            ) from error

    def __call__(
        self, f: Callable[..., Tensor], primals: Tensors, tangents: Tensors
    ) -> tuple[Tensor, Tensor]:
        kernel = self.kernel()
        if primals[0].device.type != "cuda":
            raise UserError(
                f"derivative: flash_jvp runs on CUDA, the values are on {primals[0].device.type}: use jvp"
            )
        return self.with_kernel(kernel, f, primals, tangents)

    def with_kernel(
        self, kernel: Any, f: Callable[..., Tensor], primals: Tensors, tangents: Tensors
    ) -> tuple[Tensor, Tensor]:
        """The derivative with ``kernel.fwd_dual(q, k, v, ...)`` for attention."""

        def redirected(*args: Tensor) -> Tensor:
            with _Attention(kernel):
                return f(*args)

        with sdpa_kernel(SDPBackend.MATH):
            return cast(tuple[Tensor, Tensor], torch.func.jvp(redirected, primals, tangents))


class _Attention(TorchFunctionMode):
    """Sends scaled_dot_product_attention on dual tensors to a kernel that carries tangents."""

    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self.kernel = kernel

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.attend(*args, **kwargs)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        options = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        duals = [forward_ad.unpack_dual(v) for v in (query, key, value)]
        if all(dual.tangent is None for dual in duals):
            return F.scaled_dot_product_attention(query, key, value, **options, enable_gqa=enable_gqa)
        if dropout_p > 0 or enable_gqa or (attn_mask is not None and attn_mask.dtype != torch.bool):
            raise UserError(
                "derivative: flash_jvp takes no attention dropout, grouped queries or additive masks: use jvp"
            )
        # The kernel wants a tangent for each of the three, also where one does not move.
        moving = (
            v if d.tangent is not None else forward_ad.make_dual(v, torch.zeros_like(v))
            for v, d in zip((query, key, value), duals, strict=True)
        )
        return self.kernel.fwd_dual(*moving, attn_mask=attn_mask, causal=is_causal, sm_scale=scale)


BACKENDS: dict[str, Derivative] = {
    "flash_jvp": FlashForwardMode(),
    "jvp": ForwardMode(),
    "finite_difference": FiniteDifference(),
}


class Observed(NamedTuple):
    """A derivative that was taken of a map from s to t: times (B,), value and tangent (B, *D)."""

    s: Tensor
    t: Tensor
    value: Tensor
    tangent: Tensor


class Scope(NamedTuple):
    """What a block of code differentiates with, and who is told."""

    derivative: Derivative
    observer: Callable[[Observed], None] | None = None
    share: float = 1.0


_scope = Scope(ForwardMode())  # a plain global, since torch.compile cannot trace a context variable


@contextmanager
def using(
    derivative: Derivative, observer: Callable[[Observed], None] | None = None, *, share: float = 1.0
) -> Iterator[None]:
    """Inside the block :mod:`fmtt.flow.calculus` differentiates with ``derivative`` and tells ``observer``.

    What it returns is ``share`` times the derivative, of which the observer sees the whole. The choice
    holds for the process, not for a thread.
    """
    global _scope
    outer, _scope = _scope, Scope(derivative, observer, share)
    try:
        yield
    finally:
        _scope = outer


def differentiate(
    f: Callable[..., Tensor], primals: Tensors, tangents: Tensors, s: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(f, its derivative along ``tangents``) of a map from ``s`` to ``t`` (B,), as :func:`using` says."""
    value, tangent = _scope.derivative(f, primals, tangents)
    if _scope.observer is not None:
        _scope.observer(Observed(s, t, value, tangent))
    return value, tangent if _scope.share == 1 else _scope.share * tangent
