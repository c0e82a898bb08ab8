"""Interpolants I_t = alpha_t x_0 + beta_t x_1 and the conversions between what a network may predict.

Source: stochastic interpolants (arXiv 2303.08797). With W = alpha beta' - alpha' beta:
    denoiser E[x_1 | x] = (alpha b - alpha' x) / W
    noise    E[x_0 | x] = (beta' x - beta b) / W
    score    s_t(x)     = -E[x_0 | x] / alpha        (singular at t = 1 only)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.tensor import batch_time, expand_like
from fmtt.types import Time


class Coefficients(NamedTuple):
    """alpha, beta, their time derivatives and the Wronskian, each (B, 1, ...)."""

    alpha: Tensor
    beta: Tensor
    d_alpha: Tensor
    d_beta: Tensor
    wronskian: Tensor


class Interpolant(ABC):
    """A path from noise (t = 0) to data (t = 1). Subclasses give alpha, beta and derivatives."""

    name: str

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...
    @abstractmethod
    def beta(self, t: Tensor) -> Tensor: ...
    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor: ...
    @abstractmethod
    def d_beta(self, t: Tensor) -> Tensor: ...

    def coefficients(self, t: Time, x: Tensor) -> Coefficients:
        """All coefficients at ``t``, shaped to multiply ``x`` (B, *D) and in its dtype."""
        t = expand_like(batch_time(t, x), x)
        a, b, da, db = self.alpha(t), self.beta(t), self.d_alpha(t), self.d_beta(t)
        return Coefficients(*(c.to(x.dtype) for c in (a, b, da, db, a * db - da * b)))

    def interpolate(self, x0: Tensor, x1: Tensor, t: Time) -> Tensor:
        """I_t, shape (B, *D)."""
        c = self.coefficients(t, x1)
        return c.alpha * x0 + c.beta * x1

    def data_velocity(self, x0: Tensor, x1: Tensor, t: Time) -> Tensor:
        """dI_t/dt, the conditional velocity whose mean given I_t = x is b_t(x)."""
        c = self.coefficients(t, x1)
        return c.d_alpha * x0 + c.d_beta * x1

    def denoiser(self, velocity: Tensor, x: Tensor, t: Time) -> Tensor:
        """E[x_1 | x_t = x] from the velocity."""
        c = self.coefficients(t, x)
        return torch.addcmul(c.alpha / c.wronskian * velocity, c.d_alpha / c.wronskian, x, value=-1)

    def noise(self, velocity: Tensor, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t = x] from the velocity; finite everywhere."""
        c = self.coefficients(t, x)
        return (c.d_beta * x - c.beta * velocity) / c.wronskian

    def score(self, velocity: Tensor, x: Tensor, t: Time) -> Tensor:
        """The gradient of log rho_t at x from the velocity; infinite at t = 1."""
        c = self.coefficients(t, x)
        return -(c.d_beta * x - c.beta * velocity) / (c.wronskian * c.alpha)

    def velocity_from_denoiser(self, denoiser: Tensor, x: Tensor, t: Time) -> Tensor:
        """The inverse of :meth:`denoiser`; infinite at t = 1."""
        c = self.coefficients(t, x)
        return (c.wronskian * denoiser + c.d_alpha * x) / c.alpha

    def velocity_from_noise(self, noise: Tensor, x: Tensor, t: Time) -> Tensor:
        """The inverse of :meth:`noise`; infinite at t = 0."""
        c = self.coefficients(t, x)
        return (c.d_beta * x - c.wronskian * noise) / c.beta

    def velocity_from_score(self, score: Tensor, x: Tensor, t: Time) -> Tensor:
        """The inverse of :meth:`score`; infinite at t = 0."""
        c = self.coefficients(t, x)
        return self.velocity_from_noise(-c.alpha * score, x, t)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Linear(Interpolant):
    """alpha = 1 - t, beta = t."""

    name = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_beta(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Trigonometric(Interpolant):
    """alpha = cos(pi t / 2), beta = sin(pi t / 2): unit variance along the path for unit-variance data."""

    name = "trigonometric"

    def alpha(self, t: Tensor) -> Tensor:
        # cos(pi/2) is 6e-17 in floating point; sin of the complement is exactly 0 at t = 1.
        return torch.sin((1 - t) * (math.pi / 2))

    def beta(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.cos((1 - t) * (math.pi / 2)) * (math.pi / 2)

    def d_beta(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2)) * (math.pi / 2)


INTERPOLANTS: dict[str, type[Interpolant]] = {c.name: c for c in (Linear, Trigonometric)}
