"""Problems whose answer is known in closed form: a mixture, its exact flow map, a wrong map, and rewards."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.flow.interpolant import Linear
from fmtt.flow.oracle import GaussianMixture
from fmtt.tensor import batch_time
from fmtt.types import Cond, Time

ROOT_HALF, ROOT_2_PI = 0.5**0.5, (2 * math.pi) ** 0.5
REACH, CELLS = 9.0, 4000
"""The inverse of a distribution function is sought in [-REACH, REACH], first in a table of CELLS cells."""


class ProductMixture:
    """d copies of a bimodal 1-D mixture; its flow map is the monotone coupling F_t^{-1}(F_s(x)) of each.

    A map call takes one time t for the whole batch (s may differ); far cheaper than an ODE.
    """

    interpolant = Linear()
    weights, means, deviations = (0.65, 0.35), (-1.2, 1.3), (0.5, 0.4)

    def __init__(self, d: int) -> None:
        self.data_shape = (d,)

    def oracle(self) -> GaussianMixture:
        """The same law as a mixture of 2^d components."""
        (d,) = self.data_shape
        w, m, s = (torch.tensor(p, dtype=torch.float64) for p in (self.weights, self.means, self.deviations))
        v = s.square()
        rows = torch.cartesian_prod(*[torch.arange(2)] * d).reshape(-1, d)
        return GaussianMixture(w[rows].prod(1), m[rows], v[rows])

    def _parts(self, x: Tensor, t: Tensor) -> list[tuple[float, Tensor, Tensor]]:
        """(weight, standardised distance (B, d), deviation (B, 1)) of both components at t (B, 1)."""
        variances = [((1 - t).square() + t.square() * s**2) for s in self.deviations]
        return [
            (w, (x - t * m) * v.rsqrt(), v.sqrt())
            for w, m, v in zip(self.weights, self.means, variances, strict=True)
        ]

    def _cdf(self, x: Tensor, t: Tensor) -> Tensor:
        parts = self._parts(x, t[:, None])
        return torch.stack([(w / 2) * torch.erfc(z * -ROOT_HALF) for w, z, _ in parts]).sum(0)

    def _pdf(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The density (B, d) and its derivative."""
        parts = [
            (torch.exp(z.square() / -2) * (w / ROOT_2_PI / d), z, d) for w, z, d in self._parts(x, t[:, None])
        ]
        return torch.stack([p for p, _, _ in parts]).sum(0), torch.stack(
            [-p * z / d for p, z, d in parts]
        ).sum(0)

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x), (B, d)."""
        t = batch_time(t, x)[:, None]
        (w0, z0, d0), (w1, z1, d1) = self._parts(x, t)
        odds = torch.exp((z1.square() - z0.square()) / 2) * ((w0 / w1) * (d1 / d0))
        b0, b1 = (
            m + (t * s**2 - (1 - t)) / d * z
            for m, s, z, d in zip(self.means, self.deviations, (z0, z1), (d0, d1), strict=True)
        )
        return b0 + (b1 - b0) / (1 + odds)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """X_{s,t}(x), (B, d); twice differentiable in x and s, once in t."""
        s, t = batch_time(s, x), batch_time(t, x)
        u = self._cdf(x, s)
        with torch.no_grad():
            assert bool((t == t[0]).all())
            grid = torch.linspace(-REACH, REACH, CELLS + 1, dtype=x.dtype)
            table = self._cdf(grid[:, None], t[:1])[:, 0]
            right = torch.searchsorted(table, u.contiguous()).clamp(1, CELLS)
            low, high = table[right - 1], table[right]
            y = grid[right - 1] + ((u - low) / (high - low).clamp_min(1e-300)).clamp(0, 1) * (
                grid[1] - grid[0]
            )
            step = (self._cdf(y, t) - u) / self._pdf(y, t)[0].clamp_min(1e-14)
            y = y - step.clamp(-0.01, 0.01)
            density, slope = self._pdf(y, t)
            density = density.clamp_min(1e-14)
            bend = slope / (2 * density)
        # One more step, recorded: the inverse function's series to second order, so that two derivatives in
        # x and s are right, and one in t.
        step = (self._cdf(y, t) - u) / density
        return y - step - bend * step.square()


class WrongMap(ProductMixture):
    """The map that every exactness claim must survive: far off, yet the identity at s = 1."""

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        end = super().__call__(x, s, t)
        s = batch_time(s, x)[:, None]
        return end + 0.35 * (1 - s) * torch.sin(1.3 * x + 2 * s)


class LogQuadratic:
    """r(x) = log sum_j exp(c_j + a_j . x + x^T A_j x / 2): linear, quadratic or multimodal.

    e^r is a sum of exponentials of quadratics, so the tilt of a Gaussian mixture is a Gaussian mixture.

    Args:
        A: (J, d, d). a: (J, d). c: (J,).
    """

    differentiable = True

    def __init__(self, A: Tensor, a: Tensor, c: Tensor) -> None:
        self.A, self.a, self.c = (p.double() for p in (A, a, c))

    def __call__(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        curved = torch.stack([((x @ A) * x).sum(1) for A in self.A.to(x)], 1)  # (B, J)
        terms = self.c.to(x) + x @ self.a.to(x).mT + curved / 2
        return terms[:, 0] if terms.shape[1] == 1 else terms.logsumexp(1)

    def tilt(self, law: GaussianMixture) -> tuple[GaussianMixture, Tensor]:
        """(the law of rho_1 e^r / Z, log Z)."""
        parts = [law.tilt_quadratic(A, a) for A, a in zip(self.A, self.a, strict=True)]
        log_z = torch.stack([z for _, z in parts]) + self.c  # (J,)
        share = log_z.softmax(0)
        tilted = GaussianMixture(
            torch.cat([p * part.weights for p, (part, _) in zip(share, parts, strict=True)]),
            torch.cat([part.means for part, _ in parts]),
            torch.cat([part.covariances for part, _ in parts]),
        )
        return tilted, log_z.logsumexp(0)


class Truth(NamedTuple):
    """E[x], P(x > 0) (of the first coordinate) and log Z, (3,), of the tilted law and without tilt."""

    tilted: Tensor
    untilted: Tensor


REWARDS = ("linear", "quadratic", "multimodal")
DIMENSIONS = (1, 2, 10)


def reward(name: str, d: int) -> LogQuadratic:
    """The reward called ``name`` in d dimensions.

    It acts on the first coordinate most and on all others too; in two dimensions and more its quadratic
    form couples neighbours. Its standard deviation under the untilted law is between 1 and 2.
    """
    eye = torch.eye(d, dtype=torch.float64)
    first, rest = eye[0], 1 - eye[0]
    faint = 0.5 / max(1, d - 1) ** 0.5  # the other coordinates together, whatever their number
    if name == "linear":
        return LogQuadratic(torch.zeros(1, d, d), (first + faint * rest)[None], torch.zeros(1))
    if name == "quadratic":
        coupling = torch.diag(torch.ones(d - 1), 1) if d > 1 else torch.zeros(1, 1)
        A = -torch.diag(first + faint * rest) + 0.3 * faint * (coupling + coupling.mT)
        return LogQuadratic(A[None], (1.4 * first + faint * rest)[None], torch.zeros(1))
    if name == "multimodal":
        centres = torch.tensor([-1.7, -0.1, 1.5], dtype=torch.float64)
        sides = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        precision = torch.diag(8.0 * first + 0.4 * faint * rest)
        means = centres[:, None] * first + sides[:, None] * rest
        c = torch.tensor([-1.0, 0.5, 1.5], dtype=torch.float64)
        c = c - ((means @ precision) * means).sum(1) / 2
        return LogQuadratic(-precision.expand(3, d, d), means @ precision, c)
    raise ValueError(f"a reward is one of {', '.join(REWARDS)}, got {name!r}")


def _moments(law: GaussianMixture, log_z: Tensor) -> Tensor:
    mean, variance = law.means[:, 0], law.covariances[:, 0, 0]
    above = torch.erfc(-mean / (2 * variance).sqrt()) / 2
    return torch.stack([(law.weights * mean).sum(), (law.weights * above).sum(), log_z])


def truth(name: str, d: int) -> Truth:
    """What a tilt of the mixture by the reward must find, in closed form."""
    law = ProductMixture(d).oracle()
    return Truth(_moments(*reward(name, d).tilt(law)), _moments(law, law.weights.new_zeros(())))


def statistics(x: Tensor) -> Tensor:
    """The functions whose tilted means are :class:`Truth`'s first two: (B, d) to (B, 2)."""
    return torch.stack([x[:, 0], (x[:, 0] > 0).to(x.dtype)], 1)
