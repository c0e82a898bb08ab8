"""TiltResult: estimates, honest standard errors, resampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
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


def test_log_z_is_pooled_with_the_spread_of_populations() -> None:
    """Coverage: over many groups of 16 runs, the error in units of the standard error has unit spread."""
    result = run(num_populations=640, num_particles=50)
    truth = run(num_populations=200, num_particles=2000, seed=1).pooled_log_z.value
    groups = [replace(result, log_z=part, num_populations=16).pooled_log_z for part in result.log_z.split(16)]
    scores = torch.stack([(g.value - truth) / g.standard_error for g in groups])
    assert 0.7 < scores.square().mean().sqrt() < 1.5
    alone = run().pooled_log_z
    assert alone.standard_error.isnan() and "one population" in alone.reason
    torch.testing.assert_close(alone.value, run().log_z)


def test_history_traces_rewards_strength_and_guidance() -> None:
    history = run(num_populations=2).history
    assert (
        torch.equal(history.strength[:, 0], history.t) and (history.best_reward > history.mean_reward).all()
    )
    assert (history.guidance_ratio[1:-1] > 0).all() and not history.guidance_ratio[[0, -1]].any()
    assert not run(gradient="none").history.guidance_ratio.any()
    late = run(schedule="ramp:0.5").history.mean_reward
    assert late[0].isnan().all() and late[-1].isfinite().all()


def test_plot_writes_a_figure(tmp_path: Path) -> None:
    figure = run(num_populations=2, ess_threshold=1.0).plot(tmp_path / "run.png")
    assert len(figure.axes) == 6 and (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"\.png"):
        run().plot(tmp_path / "run.txt")


def test_distinct_ancestors() -> None:
    result = run(num_populations=2, ess_threshold=1.0)
    assert result.distinct_ancestors.tolist() == [len(e.unique()) for e in result.eve.reshape(2, -1)]


def test_the_ancestors_are_told_beside_the_ess() -> None:
    one, two = run(num_particles=9), run(num_particles=9, num_populations=2)
    lone = replace(one, eve=torch.zeros_like(one.eve), ess=torch.tensor(0.75))
    assert repr(lone).startswith("TiltResult(samples of shape (9, 1), log_z=")
    assert repr(lone).endswith(", ess=0.75, distinct_ancestors=1)")
    assert repr(two).endswith(f"distinct_ancestors={two.distinct_ancestors.tolist()})")
