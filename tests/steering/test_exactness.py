"""Exactness is certified: look-ahead x weights x resampling against closed forms, wrong maps included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.steering import sampler, smc
from tests.steering.exactness_cases import (
    EXACT_STEPS,
    LOOKAHEADS,
    PATH_STEPS,
    Estimate,
    N,
    P,
    base_law,
    check_exact,
    check_path,
    closed_form,
    deviations,
    estimate,
    run_tilt,
)


@pytest.fixture(scope="module")
def reference(product_mixture: Any) -> Callable[[int], Estimate]:
    known: dict[int, Estimate] = {}

    def of(d: int) -> Estimate:
        if d not in known:
            known[d] = base_law(product_mixture, d, PATH_STEPS)
        return known[d]

    return of


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
