"""Exactness is certified: every look-ahead x weights x resampling against closed forms, wrong maps included.

Each run has 16 independent populations of 2 500 particles, and its standard error comes from their spread.
The steps are so many that halving them moves an estimate by less than that standard error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.steering import sampler, smc
from fmtt.steering.lookahead import FlowMapLookahead

P, N = 16, 2500
EXACT_STEPS, PATH_STEPS = 256, 16
LOOKAHEADS = ("none", "denoiser", "euler", "flow_map", "wrong_map")
TILTS = {
    1: ([[-1.0]], [1.5]),
    2: ([[-0.9, 0.4], [0.4, -0.7]], [1.3, 0.5]),
}


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


@pytest.fixture(scope="module")
def reference(product_mixture: Any) -> Callable[[int], Estimate]:
    known: dict[int, Estimate] = {}

    def of(d: int) -> Estimate:
        if d not in known:
            known[d] = base_law(product_mixture, d, PATH_STEPS)
        return known[d]

    return of


def deviations(found: Estimate, truth: Tensor, other: Tensor | float = 0.0) -> Tensor:
    return (found.value - truth).abs() / (found.standard_error.square() + torch.as_tensor(other) ** 2).sqrt()


def check_exact(mixture: Any, wrong: Any, d: int, lookahead: str, resample: str) -> None:
    result = run_tilt(mixture, wrong, d, lookahead, resample=resample)
    assert bool(result.history.resampled.any()) == (resample == "systematic")
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
    assert (deviations(found, truth.value, truth.standard_error) < 4).all(), (found, truth)


@pytest.mark.parametrize("lookahead", ("none", "denoiser", "euler", "wrong_map"))
def test_exact_weights_recover_the_tilted_law(product_mixture: Any, wrong_map: Any, lookahead: str) -> None:
    check_exact(product_mixture, wrong_map, 1, lookahead, "systematic")


@pytest.mark.parametrize("resample", ("systematic", "none"))
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_path_weights_recover_the_tilted_discretised_law(
    product_mixture: Any, wrong_map: Any, lookahead: str, resample: str, reference: Any
) -> None:
    check_path(product_mixture, wrong_map, 1, lookahead, resample, reference)


@pytest.mark.slow
@pytest.mark.parametrize("resample", ("systematic", "none"))
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("d", (1, 2))
def test_exact_weights_everywhere(
    product_mixture: Any, wrong_map: Any, d: int, lookahead: str, resample: str
) -> None:
    check_exact(product_mixture, wrong_map, d, lookahead, resample)


@pytest.mark.slow
@pytest.mark.parametrize("resample", ("systematic", "none"))
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_path_weights_in_two_dimensions(
    product_mixture: Any, wrong_map: Any, lookahead: str, resample: str, reference: Any
) -> None:
    check_path(product_mixture, wrong_map, 2, lookahead, resample, reference)


@pytest.mark.parametrize(
    "options",
    (
        {"guidance": 1.7},
        {"chi": 0.4},
        {"gradient": "none"},
        {"gradient_every": 3},
        {"guidance": 0.5, "gradient_every": 2, "chi": 0.2},
    ),
    ids=str,
)
def test_path_weights_are_exact_under_any_guidance(
    product_mixture: Any, wrong_map: Any, options: dict[str, Any], reference: Any
) -> None:
    check_path(product_mixture, wrong_map, 1, "wrong_map", "systematic", reference, **options)


def test_the_papers_formula_is_caught_with_a_wrong_map(product_mixture: Any, wrong_map: Any) -> None:
    found = estimate(run_tilt(product_mixture, wrong_map, 1, "wrong_map", weights="paper", num_steps=100))
    assert (deviations(found, closed_form(product_mixture, 1))[:2] > 4).all()


@pytest.mark.slow
def test_the_papers_formula_holds_for_an_exact_map(product_mixture: Any, wrong_map: Any) -> None:
    found = estimate(run_tilt(product_mixture, wrong_map, 1, "flow_map", weights="paper"))
    assert (deviations(found, closed_form(product_mixture, 1)) < 4).all()


def test_dropped_weights_are_caught(
    product_mixture: Any, wrong_map: Any, monkeypatch: pytest.MonkeyPatch, reference: Any
) -> None:
    """Weights that a population holds when it is not resampled must survive to the next step."""
    step = sampler.step

    def forgetful(problem: Any, rule: Any, state: Any, generator: Any) -> Any:
        new, info = step(problem, rule, state, generator)
        last = new.step == rule.plan.num_steps
        return (new if last else new._replace(log_weights=torch.zeros_like(new.log_weights))), info

    monkeypatch.setattr(sampler, "step", forgetful)
    result = run_tilt(product_mixture, wrong_map, 1, "denoiser", weights="path", num_steps=PATH_STEPS)
    truth = reference(1)
    assert deviations(estimate(result), truth.value, truth.standard_error).max() > 4


@pytest.mark.parametrize("field", ("evaluation", "potential"))
def test_state_left_behind_by_resampling_is_caught(
    product_mixture: Any, wrong_map: Any, monkeypatch: pytest.MonkeyPatch, reference: Any, field: str
) -> None:
    gather = smc.gather

    def careless(state: Any, index: Tensor) -> Any:
        moved = gather(state, index)
        return moved._replace(**{field: getattr(state, field)}) if hasattr(state, field) else moved

    monkeypatch.setattr(smc, "gather", careless)
    result = run_tilt(product_mixture, wrong_map, 1, "denoiser", weights="path", num_steps=PATH_STEPS)
    truth = reference(1)
    assert deviations(estimate(result), truth.value, truth.standard_error).max() > 4


def halving(mixture: Any, wrong: Any, lookahead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runs follow the same Brownian path, so that their difference is the steps' doing alone."""
    generator = torch.Generator().manual_seed(5)
    draws = [torch.randn(P * N, 1, generator=generator, dtype=torch.float64) for _ in range(EXACT_STEPS)]
    spread = [math.sqrt(1 - (k + 1) / EXACT_STEPS) for k in range(EXACT_STEPS)]

    def pair(k: int) -> Tensor:
        a, b = spread[2 * k], spread[2 * k + 1]
        return (a * draws[2 * k + 1] + b * draws[2 * k + 2]) / math.hypot(a, b)

    coarse = [draws[0], *(pair(k) for k in range(EXACT_STEPS // 2 - 1))]
    estimates = []
    for steps, noise in ((EXACT_STEPS, draws), (EXACT_STEPS // 2, coarse)):
        sequence = iter(noise)
        monkeypatch.setattr(smc, "normal", lambda *_, sequence=sequence: next(sequence))
        estimates.append(estimate(run_tilt(mixture, wrong, 1, lookahead, num_steps=steps, resample="none")))
    fine, half = estimates
    assert ((fine.value - half.value).abs() < fine.standard_error).all(), estimates


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_halving_the_steps_moves_less_than_one_standard_error(
    product_mixture: Any, wrong_map: Any, monkeypatch: pytest.MonkeyPatch, lookahead: str
) -> None:
    halving(product_mixture, wrong_map, lookahead, monkeypatch)
