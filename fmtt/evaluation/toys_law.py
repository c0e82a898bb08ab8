"""Rings in the plane: equal round Gaussians with an n-fold symmetry, their velocity and a tabulated flow map.

The velocity is closed. The flow map is computed once by Runge-Kutta on a grid of (t, r, phi) within one
period of the symmetry and interpolated by cubics, so that a look-ahead costs a few look-ups and is
continuously differentiable in x and t. With t -> 1 it becomes the identity by construction. What
interpolation leaves is an error like any imperfect map's, which exact weights correct for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmtt.flow.interpolant import Linear
from fmtt.flow.oracle import GaussianMixture
from fmtt.tensor import batch_time
from fmtt.types import Cond, Time

ROOM = 5.0
"""The table reaches ROOM standard deviations beyond the outermost centre."""


class RingLaw:
    """The flow from N(0, I) to K equal Gaussians N(m_k, variance I) with an n-fold dihedral symmetry.

    Args:
        centres: (K, 2), invariant under rotations by 2 pi / n and under reflection in the first axis.
        deviation: of every component, per coordinate.
        symmetry: n.
        table: grid of the map: times, radii, angles of one period (an even number).
        steps: fourth-order steps of the table's trajectories.
    """

    interpolant = Linear()
    data_shape = (2,)

    def __init__(
        self,
        centres: Tensor,
        deviation: float,
        symmetry: int,
        *,
        table: tuple[int, int, int] = (40, 128, 16),
        steps: int = 32,
    ) -> None:
        self.shape = table
        self.centres, self.deviation, self.symmetry = centres.double(), float(deviation), symmetry
        self.period = 2 * math.pi / symmetry
        self.far = float(self.centres.norm(dim=1).max()) + ROOM * self.deviation
        self.table = self._tabulate(steps)  # (2, times, radii, angles): radial and angular mean velocity

    def oracle(self) -> GaussianMixture:
        """The same law from the library."""
        K = len(self.centres)
        return GaussianMixture(torch.ones(K), self.centres, torch.full((K,), self.deviation**2))

    def denoiser(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """E[x_1 | x_t = x], (B, 2)."""
        t = batch_time(t, x)[:, None]
        m = self.centres.to(x)
        variance = (1 - t).square() + t.square() * self.deviation**2
        logits = (t / variance) * (x @ m.mT) - (t.square() / (2 * variance)) * m.square().sum(1)
        centre = logits.softmax(1) @ m
        return centre + (t * self.deviation**2 / variance) * (x - t * centre)

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x), (B, 2); finite at t = 1 too."""
        t = batch_time(t, x)[:, None]
        m = self.centres.to(x)
        variance = (1 - t).square() + t.square() * self.deviation**2
        logits = (t / variance) * (x @ m.mT) - (t.square() / (2 * variance)) * m.square().sum(1)
        centre = logits.softmax(1) @ m
        return centre + ((t * self.deviation**2 - (1 - t)) / variance) * (x - t * centre)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """X_{s,1}(x), (B, 2); the table knows t = 1 alone.

        Raises:
            ValueError: when some t is not 1.
        """
        if not bool((batch_time(t, x) == 1).all()):
            raise ValueError("the tabulated map of a ring goes to t = 1 only")
        s = batch_time(s, x)
        r = x.square().sum(1).clamp_min(1e-24).sqrt()
        phi = torch.atan2(x[:, 1], x[:, 0])
        outward, around = self._interpolate(s, r, phi)
        left = 1 - s
        r, phi = r + left * outward, phi + left * around
        return torch.stack([r * phi.cos(), r * phi.sin()], 1)

    def _reach(self, t: Tensor) -> Tensor:
        """The largest radius of the table at time t."""
        return ROOM * (1 - t) + self.far * t

    def _grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """(t, r, phi) of the table, (times, radii, angles) each; finer towards t = 1 and r = 0."""
        times, radii, angles = self.shape
        u = torch.arange(times, dtype=torch.float64) / (times - 1)
        v = torch.arange(radii, dtype=torch.float64) / (radii - 1)
        t = (1 - (1 - u).square())[:, None, None]
        r = self._reach(t) * v.square()[None, :, None]
        phi = (torch.arange(angles, dtype=torch.float64) * (self.period / angles))[None, None, :]
        return tuple(torch.broadcast_tensors(t, r, phi))  # type: ignore[return-value]

    def _tabulate(self, steps: int) -> Tensor:
        t, r, phi = self._grid()
        half = self.shape[2] // 2 + 1  # the other half of a period is the reflection of this one
        t, r, phi = (v[..., :half].reshape(-1) for v in (t, r.clamp_min(1e-9), phi))
        end = self._solve(torch.stack([r * phi.cos(), r * phi.sin()], 1), t, steps)
        left = (1 - t).clamp_min(1e-300)
        turn = torch.atan2(end[:, 1], end[:, 0]) - phi
        turn = (turn + math.pi).remainder(2 * math.pi) - math.pi
        late = t >= 1
        outward = torch.where(late, r, (end.norm(dim=1) - r) / left)  # b_1(x) = x on the linear path
        around = torch.where(late, torch.zeros_like(r), turn / left)
        shape = (*self.shape[:2], half)
        outward, around = outward.reshape(shape), around.reshape(shape)
        mirror = torch.arange(half - 2, 0, -1)
        return torch.stack(
            [
                torch.cat([outward, outward[..., mirror]], -1),
                torch.cat([around, -around[..., mirror]], -1),
            ]
        )

    def _solve(self, x: Tensor, t: Tensor, steps: int) -> Tensor:
        """Carry x (B, 2) from t (B,) to 1 by Runge-Kutta, in steps that shrink towards 1 as (1 - t) does."""
        # In sigma with t = 1 - (1 - t0) (1 - sigma)², dt = 2 (1 - t0) (1 - sigma) d sigma.
        h = 1 / steps
        parts = []
        for part, start in zip(x.split(1024), t.split(1024), strict=True):
            left = (1 - start)[:, None]

            def rate(y: Tensor, sigma: float, left: Tensor = left) -> Tensor:
                time = 1 - left[:, 0] * (1 - sigma) ** 2
                return 2 * (1 - sigma) * left * self.velocity(y, time)

            for k in range(steps):
                sigma = k * h
                k1 = rate(part, sigma)
                k2 = rate(part + h / 2 * k1, sigma + h / 2)
                k3 = rate(part + h / 2 * k2, sigma + h / 2)
                k4 = rate(part + h * k3, sigma + h)
                part = part + h / 6 * (k1 + 2 * (k2 + k3) + k4)
            parts.append(part)
        return torch.cat(parts)

    def _interpolate(self, t: Tensor, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Radial and angular mean velocity, (B,) each, by Catmull-Rom cubics in the grid's coordinates."""
        times, radii, angles = self.shape
        u = (1 - (1 - t).clamp_min(1e-24).sqrt()) * (times - 1)
        share = (r / self._reach(t)).clamp(1e-12, 1)
        v = share.sqrt() * (radii - 1)
        w = phi / self.period * angles
        (iu, wu), (iv, wv), (iw, ww) = (_cubic(q) for q in (u, v, w))
        iu, iv, iw = iu.clamp(0, times - 1), iv.clamp(0, radii - 1), iw.remainder(angles)
        index = (iu[:, :, None, None] * radii + iv[:, None, :, None]) * angles + iw[:, None, None, :]
        # At an edge the outer nodes repeat the last one, which bends the cubic there a little.
        values = self.table.to(t).reshape(2, -1)[:, index]  # (2, B, 4, 4, 4)
        values = (values * ww[:, None, None, :]).sum(-1)
        values = (values * wv[:, None, :]).sum(-1)
        return tuple((values * wu).sum(-1))  # type: ignore[return-value]


def _cubic(q: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (B, 4) around positions q (B,) and their Catmull-Rom weights (B, 4), differentiable in q."""
    base = q.detach().floor()
    f = q - base
    weights = torch.stack(
        [
            ((2 - f) * f - 1) * f / 2,
            ((3 * f - 5) * f * f + 2) / 2,
            ((4 - 3 * f) * f + 1) * f / 2,
            (f - 1) * f * f / 2,
        ],
        1,
    )
    return base.long()[:, None] + torch.arange(-1, 3, device=q.device), weights
