"""What the exactness tests share: the problem, its truth, and how far an estimate may be from it.

Each run has 16 independent populations of 2 500 particles, and its standard error comes from their spread.
The steps are so many that halving them moves an estimate by less than that standard error.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fmtt
from fmtt.evaluation.certify_problems import ProductMixture, WrongMap
from fmtt.steering.lookahead import FlowMapLookahead

P, N = 16, 2500
EXACT_STEPS, PATH_STEPS = 256, 16
LOOKAHEADS = ("none", "denoiser", "euler", "flow_map", "wrong_map")
TILTS = {
    1: ([[-1.0]], [1.5]),
    2: ([[-0.9, 0.4], [0.4, -0.7]], [1.3, 0.5]),
}


class Close(ProductMixture):
    """Modes so close that the flow map bends gently, by second derivatives up to 3.

    Between well separated modes they exceed 1 000, and with them the Laplacian of r(X): weights that contain
    it are exact there too, but only at thousands of steps.
    """

    means, deviations = (-0.8, 0.8), (0.6, 0.5)


class CloseWrong(WrongMap):
    """A wrong map of the same law."""

    means, deviations = Close.means, Close.deviations


class Quadratic:
    """r(x) = a . x + x^T A x / 2."""

    differentiable = True

    def __init__(self, d: int) -> None:
        self.A, self.a = (torch.tensor(p, dtype=torch.float64) for p in TILTS[d])

    def __call__(self, x: Tensor, cond: Any = None) -> Tensor:
        return x @ self.a + ((x @ self.A) * x).sum(1) / 2


class Estimate(NamedTuple):
    """E[x], P(x > 0) and log Z, (3,), the first two of the first coordinate."""

    value: Tensor
    standard_error: Tensor


def statistics(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], (x[:, 0] > 0).double()], 1)


def closed_form(mixture: Any, d: int, *, tilted: bool = True) -> Tensor:
    reward = Quadratic(d)
    law, log_z = mixture(d).oracle().tilt_quadratic(reward.A * tilted, reward.a * tilted)
    mean, variance = law.means[:, 0], law.covariances[:, 0, 0]
    above = torch.erfc(-mean / (2 * variance).sqrt()) / 2
    return torch.stack([(law.weights * mean).sum(), (law.weights * above).sum(), log_z])


def run_tilt(mixture: Any, wrong: Any, d: int, lookahead: str, **options: Any) -> fmtt.TiltResult:
    options = {"weights": "exact", "num_steps": EXACT_STEPS, "ess_threshold": 0.9, "seed": 1, **options}
    seed = options.pop("seed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fmtt.tilt(
            mixture(d),
            Quadratic(d),
            num_particles=N,
            num_populations=P,
            lookahead=FlowMapLookahead(wrong(d)) if lookahead == "wrong_map" else lookahead,
            lookahead_steps=2 if lookahead == "euler" else 1,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )


def estimate(result: fmtt.TiltResult) -> Estimate:
    values = torch.cat([result.expect(statistics).value, result.log_z[:, None]], 1)
    return Estimate(values.mean(0), values.std(0) / math.sqrt(P))


def base_law(mixture: Any, d: int, steps: int, n: int = 400_000) -> Estimate:
    """Self-normalised e^r over the sampler's discretised base SDE, written without the library."""
    flow, reward = mixture(d), Quadratic(d)
    generator = torch.Generator().manual_seed(99)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    h = 1 / steps
    for k in range(steps):
        t = k * h
        b = flow.velocity(x, t)
        eps = 1 - t - h
        score = (t * b - x) / (1 - t)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x + h * (b + eps * score) + math.sqrt(2 * max(eps, 0.0) * h) * noise
    w = torch.exp(reward(x))
    values, mean = statistics(x), w.mean()
    ratio = (w[:, None] * values).sum(0) / w.sum()
    se_ratio = ((w[:, None] * (values - ratio)).square().sum(0)).sqrt() / w.sum()
    log_z, se_log_z = mean.log()[None], (w.std() / math.sqrt(n) / mean)[None]
    return Estimate(torch.cat([ratio, log_z]), torch.cat([se_ratio, se_log_z]))


def deviations(found: Estimate, truth: Tensor, other: Tensor | float = 0.0) -> Tensor:
    return (found.value - truth).abs() / (found.standard_error.square() + torch.as_tensor(other) ** 2).sqrt()


def check_exact(
    mixture: Any, wrong: Any, d: int, lookahead: str, resample: str = "systematic", **options: Any
) -> None:
    result = run_tilt(mixture, wrong, d, lookahead, resample=resample, **options)
    assert bool(result.history.resampled.any()) == (resample != "none")
    found, truth = estimate(result), closed_form(mixture, d)
    effect = (truth - closed_form(mixture, d, tilted=False)).abs()
    assert (found.standard_error[:2] < 0.02 * effect[:2]).all()
    assert (deviations(found, truth) < 4).all(), (found, truth)


def check_path(
    mixture: Any, wrong: Any, d: int, lookahead: str, resample: str, reference: Any, **options: Any
) -> None:
    result = run_tilt(
        mixture, wrong, d, lookahead, weights="path", num_steps=PATH_STEPS, resample=resample, **options
    )
    found, truth = estimate(result), reference(d)
    effect = (truth.value - closed_form(mixture, d, tilted=False)).abs()
    assert (found.standard_error[:2] < 0.02 * effect[:2]).all()
    assert (deviations(found, truth.value, truth.standard_error) < 4).all(), (found, truth)
