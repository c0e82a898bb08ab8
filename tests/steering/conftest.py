"""A bimodal product mixture with a cheap exact flow map, and a deliberately wrong one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmtt.flow.interpolant import Linear
from fmtt.flow.oracle import GaussianMixture
from fmtt.tensor import batch_time

WEIGHTS, MEANS, DEVIATIONS = (0.65, 0.35), (-1.2, 1.3), (0.5, 0.4)
ROOT_HALF, ROOT_2_PI = 0.5**0.5, (2 * math.pi) ** 0.5


class ProductMixture:
    """d copies of a 1-D mixture; its flow map is the monotone coupling F_t^{-1}(F_s(x)) of each."""

    interpolant = Linear()

    def __init__(self, d: int) -> None:
        self.data_shape = (d,)

    def oracle(self) -> GaussianMixture:
        """The same law from the library, with 2^d components."""
        (d,) = self.data_shape
        w, m, s = (torch.tensor(p, dtype=torch.float64) for p in (WEIGHTS, MEANS, DEVIATIONS))
        v = s.square()
        rows = torch.cartesian_prod(*[torch.arange(2)] * d).reshape(-1, d)
        return GaussianMixture(w[rows].prod(1), m[rows], v[rows])

    def _parts(self, x: Tensor, t: Tensor) -> list[tuple[float, Tensor, Tensor]]:
        """(weight, standardised distance (B, d), deviation (B, 1)) of both components at t (B, 1)."""
        variances = [((1 - t).square() + t.square() * s**2) for s in DEVIATIONS]
        return [
            (w, (x - t * m) * v.rsqrt(), v.sqrt()) for w, m, v in zip(WEIGHTS, MEANS, variances, strict=True)
        ]

    def _cdf(self, x: Tensor, t: Tensor) -> Tensor:
        parts = self._parts(x, t[:, None])
        return torch.stack([(w / 2) * torch.erfc(z * -ROOT_HALF) for w, z, _ in parts]).sum(0)

    def _pdf(self, x: Tensor, t: Tensor) -> Tensor:
        parts = self._parts(x, t[:, None])
        return torch.stack([torch.exp(z.square() / -2) * (w / ROOT_2_PI / d) for w, z, d in parts]).sum(0)

    def velocity(self, x: Tensor, t: Tensor | float, cond=None) -> Tensor:
        t = batch_time(t, x)[:, None]
        (w0, z0, d0), (w1, z1, d1) = self._parts(x, t)
        odds = torch.exp((z1.square() - z0.square()) / 2) * ((w0 / w1) * (d1 / d0))
        b0, b1 = (
            m + (t * s**2 - (1 - t)) / d * z
            for m, s, z, d in zip(MEANS, DEVIATIONS, (z0, z1), (d0, d1), strict=True)
        )
        return b0 + (b1 - b0) / (1 + odds)

    def __call__(self, x: Tensor, s: Tensor | float, t: Tensor | float, cond=None) -> Tensor:
        s, t = batch_time(s, x), batch_time(t, x)
        u = self._cdf(x, s)
        with torch.no_grad():
            assert bool((t == t[0]).all())
            grid = torch.linspace(-9, 9, 4001, dtype=x.dtype)
            table = self._cdf(grid[:, None], t[:1])[:, 0]
            right = torch.searchsorted(table, u.contiguous()).clamp(1, 4000)
            low, high = table[right - 1], table[right]
            y = grid[right - 1] + ((u - low) / (high - low).clamp_min(1e-300)).clamp(0, 1) * (
                grid[1] - grid[0]
            )
            for _ in range(2):
                step = (self._cdf(y, t) - u) / self._pdf(y, t).clamp_min(1e-14)
                y = y - step.clamp(-0.01, 0.01)
            density = self._pdf(y, t).clamp_min(1e-14)
        # One more Newton step, recorded: its derivative is the inverse function's.
        residual = self._cdf(y, t) - u
        return y - residual / density


class WrongMap(ProductMixture):
    """The map that every exactness claim must survive: far off, yet the identity at s = 1."""

    def __call__(self, x: Tensor, s: Tensor | float, t: Tensor | float, cond=None) -> Tensor:
        end = super().__call__(x, s, t)
        s = batch_time(s, x)[:, None]
        return end + 0.35 * (1 - s) * torch.sin(1.3 * x + 2 * s)


@pytest.fixture(scope="session")
def product_mixture() -> type[ProductMixture]:
    return ProductMixture


@pytest.fixture(scope="session")
def wrong_map() -> type[WrongMap]:
    return WrongMap
