"""Data that is a Gaussian mixture: velocity, score, denoiser and exponential tilts in closed form.

Given component k, x_t is N(beta m_k, alpha^2 I + beta^2 C_k); everything else is an average over
the responsibilities gamma_k(x, t). Inside, particles are the last dimension, (K, d, B): times of
shape (B,) then broadcast by themselves and sums over K and d are vectorised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.flow.interpolant import Interpolant, Linear
from fmtt.flow.oracle_flow import integrate_flow
from fmtt.tensor import batch_time
from fmtt.types import Cond, Time


class Posterior(NamedTuple):
    """What x_t = x says of each component (means relative to it in its eigenbasis)."""

    log_joint: Tensor  # (K, B): log weight + log density of x under the component
    gamma: Tensor  # (K, B): responsibilities
    whitened: Tensor  # (K, d, B): precision of the component times (x - beta m_k)


class GaussianMixture:
    """The flow from N(0, I) to sum_k w_k N(m_k, C_k).

    The flow map solves the probability-flow ODE by ``steps`` Runge-Kutta steps per unit of time.

    Args:
        weights: (K,), positive; normalised here.
        means: (K, d).
        covariances: variances (K,), diagonals (K, d) or matrices (K, d, d), positive definite.
        interpolant: the path; Linear if omitted.
        steps: fourth-order steps for a map from 0 to 1. At 64 the largest error over 40 000 particles
            is about 1e-5 for component variances of 0.3 and 5e-4 for 0.05; it falls by 16 per doubling.
        dtype: of the parameters and of samples; calls follow the dtype of their ``x``.

    Raises:
        ValueError: when shapes disagree, a weight is not positive or a covariance not positive definite.
    """

    def __init__(
        self,
        weights: Tensor | list[float],
        means: Tensor | list[list[float]],
        covariances: Tensor | list,
        interpolant: Interpolant | None = None,
        *,
        steps: int = 64,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        weights = torch.as_tensor(weights, dtype=dtype, device=device)
        self.means = torch.as_tensor(means, dtype=dtype, device=device)
        given = torch.as_tensor(covariances, dtype=dtype, device=device)
        if self.means.ndim != 2 or weights.shape != self.means.shape[:1]:
            shapes = f"{tuple(self.means.shape)} and {tuple(weights.shape)}"
            raise ValueError(f"means must be (K, d) and weights (K,), got {shapes}")
        K, d = self.means.shape
        if given.shape not in ((K,), (K, d), (K, d, d)):
            raise ValueError(
                f"covariances must be ({K},), ({K}, {d}) or ({K}, {d}, {d}), got {tuple(given.shape)}"
            )
        if not bool((weights > 0).all()):
            raise ValueError("mixture weights must be positive")
        self.diagonal = given.ndim < 3
        if self.diagonal:
            self.variances = (given if given.ndim == 2 else given[:, None]).expand(K, d).contiguous()
            self.axes = torch.eye(d, dtype=dtype, device=device).expand(K, d, d)
            self.covariances = torch.diag_embed(self.variances)
        else:
            self.covariances = (given + given.mT) / 2
            self.variances, self.axes = torch.linalg.eigh(self.covariances)
        if not bool((self.variances > 0).all()):
            raise ValueError("covariances must be positive definite")
        self.weights = weights / weights.sum()
        self.interpolant: Interpolant = Linear() if interpolant is None else interpolant
        self.steps = steps

    @property
    def data_shape(self) -> tuple[int]:
        return (self.means.shape[1],)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """X_{s,t}(x), (B, d) to (B, d), for either order of s and t; differentiable in x, s and t."""
        return integrate_flow(self, x, batch_time(s, x), batch_time(t, x), self.steps)

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x), (B, d)."""
        return self.velocity_and_jvp(x.mT, batch_time(t, x))[0].mT

    def denoiser(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """E[x_1 | x_t = x], (B, d)."""
        t = batch_time(t, x)
        p, beta = self._posterior(x.mT, t), self.interpolant.beta(t)
        e, m = self.variances.to(x)[:, :, None], self.means.to(x)[:, :, None]
        return (p.gamma[:, None] * (m + self._from_axes(beta * e * p.whitened))).sum(0).mT

    def noise(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """E[x_0 | x_t = x], (B, d)."""
        t = batch_time(t, x)
        return -self.interpolant.alpha(t)[:, None] * self.score(x, t)

    def score(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The gradient of log rho_t at x, (B, d); finite at t = 1 too."""
        p = self._posterior(x.mT, batch_time(t, x))
        return -(p.gamma[:, None] * self._from_axes(p.whitened)).sum(0).mT

    def log_density(self, x: Tensor, t: Time = 1.0) -> Tensor:
        """log rho_t(x), (B,)."""
        return self._posterior(x.mT, batch_time(t, x)).log_joint.logsumexp(0)

    def sample(self, n: int, generator: torch.Generator | None = None, t: float = 1.0) -> Tensor:
        """``n`` draws from rho_t, (n, d)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(
            (n, *self.data_shape), generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        time = torch.tensor(t, dtype=self.means.dtype, device=self.means.device)
        alpha, beta = self.interpolant.alpha(time), self.interpolant.beta(time)
        std = (alpha.square() + beta.square() * self.variances[k]).sqrt()
        return beta * self.means[k] + torch.einsum("nij,nj->ni", self.axes[k], std * z)

    def tilt_linear(self, a: Tensor) -> tuple[GaussianMixture, Tensor]:
        """(the law of rho_1 exp(a . x) / Z, log Z); ``a`` is (d,).

        Component k moves to m_k + C_k a and its weight is multiplied by exp(a . m_k + a . C_k a / 2).
        """
        a = torch.as_tensor(a).to(self.means)
        shift = self.covariances @ a  # (K, d)
        log_z = (self.means + shift / 2) @ a
        given = self.variances if self.diagonal else self.covariances
        return self._tilted(self.means + shift, given, log_z)

    def tilt_quadratic(self, A: Tensor, a: Tensor | None = None) -> tuple[GaussianMixture, Tensor]:
        """(the law of rho_1 exp(a . x + x^T A x / 2) / Z, log Z); ``A`` is (d, d), ``a`` (d,).

        Component k's precision P becomes P - A and its mean (P - A)^{-1} (P m_k + a).

        Raises:
            ValueError: when the tilted law has no finite mass (P - A is not positive definite).
        """
        A = torch.as_tensor(A).to(self.means)
        A = (A + A.mT) / 2
        a = torch.zeros_like(self.means[0]) if a is None else torch.as_tensor(a).to(self.means)
        precision = torch.linalg.inv(self.covariances)
        tilted = precision - A
        if not bool((torch.linalg.eigvalsh(tilted) > 0).all()):
            raise ValueError("exp(x^T A x / 2) grows faster than the mixture decays: A is too large")
        covariances = torch.linalg.inv(tilted)
        linear = torch.einsum("kij,kj->ki", precision, self.means)
        means = torch.einsum("kij,kj->ki", covariances, linear + a)
        log_z = (means * (linear + a)).sum(1) / 2 - (self.means * linear).sum(1) / 2
        log_z = log_z + (torch.logdet(precision) - torch.logdet(tilted)) / 2
        return self._tilted(means, covariances, log_z)

    def _tilted(self, means: Tensor, covariances: Tensor, log_z: Tensor) -> tuple[GaussianMixture, Tensor]:
        log_weights = self.weights.log() + log_z
        mixture = GaussianMixture(
            log_weights.softmax(0),
            means,
            covariances,
            self.interpolant,
            steps=self.steps,
            dtype=means.dtype,
            device=means.device,
        )
        return mixture, log_weights.logsumexp(0)

    def velocity_and_jvp(self, x: Tensor, t: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(b_t(x), its Jacobian times ``v``) with particles last: x, v (d, B), t (B,) or (1,).

        The Jacobian is symmetric (b is a gradient), so the same product serves both directions.
        With b_k the velocity of component k and g_k its score,
        grad b . v = sum_k gamma_k [grad b_k . v + (b_k - b) (g_k . v)].
        """
        p, path = self._posterior(x, t), self.interpolant
        alpha, beta, d_alpha, d_beta = path.alpha(t), path.beta(t), path.d_alpha(t), path.d_beta(t)
        e, m = self.variances.to(x)[:, :, None], self.means.to(x)[:, :, None]
        rate = d_alpha * alpha + d_beta * beta * e  # half the time derivative of the variance
        gamma = p.gamma[:, None]
        b_k = d_beta * m + self._from_axes(rate * p.whitened)
        b = (gamma * b_k).sum(0)
        if v is None:
            return b, None
        v_k = self._to_axes(v.expand_as(p.whitened))
        along = -(p.whitened * v_k).sum(1, keepdim=True)  # g_k . v, (K, 1, B)
        precision = 1 / (alpha.square() + beta.square() * e)
        jvp_k = self._from_axes(rate * precision * v_k) + (b_k - b) * along
        return b, (gamma * jvp_k).sum(0)

    def _posterior(self, x: Tensor, t: Tensor) -> Posterior:
        alpha, beta = self.interpolant.alpha(t), self.interpolant.beta(t)
        e, m = self.variances.to(x)[:, :, None], self.means.to(x)[:, :, None]
        variance = alpha.square() + beta.square() * e  # (K, d, B)
        y = self._to_axes(x - beta * m)
        whitened = y / variance
        constant = self.weights.to(x).log()[:, None] - (2 * torch.pi * variance).log().sum(1) / 2
        log_joint = constant - (y * whitened).sum(1) / 2
        return Posterior(log_joint, log_joint.softmax(0), whitened)

    def _to_axes(self, y: Tensor) -> Tensor:
        return y if self.diagonal else self.axes.mT.to(y) @ y

    def _from_axes(self, y: Tensor) -> Tensor:
        return y if self.diagonal else self.axes.to(y) @ y
