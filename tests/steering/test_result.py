"""TiltResult: estimates, honest standard errors, resampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.flow.oracle import Gaussian


def run(**options: Any) -> fmtt.TiltResult:
    def reward(x: Tensor, cond: Any) -> Tensor:
        return 1.2 * x[:, 0]

    settings = {"num_particles": 400, "num_steps": 10, "weights": "path", "lookahead": "denoiser", **options}
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    return fmtt.tilt(Gaussian([0.5], 0.3), reward, dtype=torch.float64, generator=generator, **settings)


def first(x: Tensor) -> Tensor:
    return x[:, 0]


@pytest.mark.parametrize("threshold", (0.0, 0.95))
def test_standard_error_matches_the_spread_of_independent_runs(threshold: float) -> None:
    found = run(num_populations=200, ess_threshold=threshold).expect(first)
    claimed, observed = found.standard_error.square().mean().sqrt(), found.value.std()
    assert found.value.shape == (200,)
    assert 0.75 < claimed / observed < 1.7  # systematic resampling makes it a little too careful


def test_importance_sampling_is_the_special_case() -> None:
    result = run(resample="none", gradient="none")
    w, x = torch.softmax(result.log_weights, 0), first(result.samples)
    mean = (w * x).sum()
    found = result.expect(first)
    torch.testing.assert_close(found.value, mean)
    variance = (w.square() * (x - mean).square()).sum() * 400 / 399
    torch.testing.assert_close(found.standard_error, variance.sqrt())


def test_several_functions_at_once() -> None:
    result = run()
    both = result.expect(lambda x: torch.stack([first(x), first(x) ** 2], 1))
    torch.testing.assert_close(both.value[0], result.expect(first).value)
    torch.testing.assert_close(both.standard_error[0], result.expect(first).standard_error)


def test_pooling_weighs_populations_by_their_z() -> None:
    result = run(num_populations=50)
    pooled, apart = result.expect(first, pool=True), result.expect(first)
    weights = torch.softmax(result.log_z, 0)
    torch.testing.assert_close(pooled.value, (weights * apart.value).sum())
    p = torch.softmax(result.pooled_log_weights, 0)
    torch.testing.assert_close((p * first(result.samples)).sum(), pooled.value)
    assert float(pooled.standard_error) == pytest.approx(float(apart.value.std()) / 50**0.5, rel=0.6)


def test_one_surviving_ancestor_gives_nan_and_a_reason() -> None:
    result = run()
    result = replace(result, eve=torch.zeros_like(result.eve))
    found = result.expect(first)
    assert found.standard_error.isnan() and "one initial particle" in found.reason
    assert run().expect(first).reason == ""


def test_resample_draws_by_weight() -> None:
    result = run(num_populations=2, resample="none", gradient="none")
    drawn = result.resample(50_000, torch.Generator().manual_seed(1)).reshape(2, -1)
    torch.testing.assert_close(drawn.mean(1), result.expect(first).value, atol=2e-3, rtol=0)
    again = result.resample(50_000, torch.Generator().manual_seed(1)).reshape(2, -1)
    assert torch.equal(drawn, again)
