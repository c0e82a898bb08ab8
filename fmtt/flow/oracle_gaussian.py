"""Data that is one Gaussian: its flow map is affine and known in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fmtt.flow.interpolant import Interpolant
from fmtt.flow.oracle_mixture import GaussianMixture
from fmtt.types import Cond, Time


class Gaussian:
    """The flow from N(0, I) to N(mean, covariance), every quantity in closed form.

    In the covariance's eigenbasis the coordinates are independent and
    X_{s,t}(x) = beta_t m + sqrt(v_t / v_s) (x - beta_s m), with v_t = alpha_t^2 + beta_t^2 e.

    Args:
        mean: (d,).
        covariance: a variance (), variances (d,) or a covariance (d, d), positive definite.
        interpolant: the path; Linear if omitted.
        dtype: of the parameters and of samples; calls follow the dtype of their ``x``.

    Raises:
        ValueError: when shapes disagree or the covariance is not positive definite.
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        covariance: Tensor | float | Sequence[float] | Sequence[Sequence[float]] = 1.0,
        interpolant: Interpolant | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        mean = torch.as_tensor(mean, dtype=dtype, device=device)
        covariance = torch.as_tensor(covariance, dtype=dtype, device=device)
        one = torch.ones(1, dtype=dtype, device=device)
        self._mixture = GaussianMixture(
            one, mean[None], covariance[None], interpolant, dtype=dtype, device=device
        )

    @property
    def interpolant(self) -> Interpolant:
        return self._mixture.interpolant

    @property
    def data_shape(self) -> tuple[int]:
        return self._mixture.data_shape

    @property
    def mean(self) -> Tensor:
        """(d,)."""
        return self._mixture.means[0]

    @property
    def covariance(self) -> Tensor:
        """(d, d)."""
        return self._mixture.covariances[0]

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        """X_{s,t}(x), (B, d) to (B, d), for either order of s and t."""
        here, there = self.interpolant.coefficients(s, x), self.interpolant.coefficients(t, x)
        mean, variances = self.mean.to(x), self._mixture.variances[0].to(x)
        axes = self._mixture.axes[0].to(x)
        ratio = (there.alpha.square() + there.beta.square() * variances) / (
            here.alpha.square() + here.beta.square() * variances
        )
        return there.beta * mean + ((x - here.beta * mean) @ axes * ratio.sqrt()) @ axes.mT

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """b_t(x), (B, d)."""
        return self._mixture.velocity(x, t)

    def denoiser(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """E[x_1 | x_t = x], (B, d)."""
        return self._mixture.denoiser(x, t)

    def noise(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """E[x_0 | x_t = x], (B, d)."""
        return self._mixture.noise(x, t)

    def score(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The gradient of log rho_t at x, (B, d)."""
        return self._mixture.score(x, t)

    def log_density(self, x: Tensor, t: Time = 1.0) -> Tensor:
        """log rho_t(x), (B,)."""
        return self._mixture.log_density(x, t)

    def sample(self, n: int, generator: torch.Generator | None = None, t: float = 1.0) -> Tensor:
        """``n`` draws from rho_t, (n, d)."""
        return self._mixture.sample(n, generator, t)

    def tilt_linear(self, a: Tensor) -> tuple[Gaussian, Tensor]:
        """(the law of rho_1 exp(a . x) / Z, log Z); ``a`` is (d,)."""
        return self._single(*self._mixture.tilt_linear(a))

    def tilt_quadratic(self, A: Tensor, a: Tensor | None = None) -> tuple[Gaussian, Tensor]:
        """(the law of rho_1 exp(a . x + x^T A x / 2) / Z, log Z); ``A`` is (d, d).

        Raises:
            ValueError: when the tilted law has no finite mass.
        """
        return self._single(*self._mixture.tilt_quadratic(A, a))

    @staticmethod
    def _single(mixture: GaussianMixture, log_z: Tensor) -> tuple[Gaussian, Tensor]:
        mean, covariance = mixture.means[0], mixture.covariances[0]
        gaussian = Gaussian(mean, covariance, mixture.interpolant, dtype=mean.dtype, device=mean.device)
        return gaussian, log_z
