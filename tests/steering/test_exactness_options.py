"""Exactness of what may be chosen besides: schedules, resampling, the chi drift, zeroth-order gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from fmtt.steering import adaptive, dynamics, schedule, weights
from fmtt.steering.shift import Shift
from tests.steering.exactness_cases import (
    LOOKAHEADS,
    PATH_STEPS,
    Close,
    CloseWrong,
    Estimate,
    base_law,
    check_exact,
    check_path,
    closed_form,
    deviations,
    estimate,
    run_tilt,
)

SCHEDULES = ("ramp:0.3", "adaptive", "adaptive:0.9")


@pytest.fixture(scope="module")
def reference(product_mixture: Any) -> Callable[[int], Estimate]:
    return cache(lambda d: base_law(product_mixture, d, PATH_STEPS))


@pytest.mark.parametrize(
    "options",
    (
        {"schedule": "ramp:0.3"},
        {"schedule": "adaptive"},
        {"schedule": "adaptive:0.9", "gradient_every": 2},
        {"resample": "ssp"},
        {"resample": "residual", "schedule": "adaptive"},
        {"resample": "stratified", "resample_share": 0.4},
        {"resample": "multinomial", "resample_at": (0.2, 0.5, 0.8), "final_resample": True},
        {"gradient": "zeroth", "num_probes": 2, "probe_scale": 0.5},
        {"chi": lambda t: 0.4 * (1 - t), "guidance": 0.5},
        {"step_size": "clipped", "guidance": 0.05},
        {"step_size": "normalized", "guidance": 0.3},
        {"step_size": "clipped", "guidance": 0.05, "schedule": "adaptive"},
    ),
    ids=str,
)
def test_path_weights(product_mixture: Any, wrong_map: Any, options: dict[str, Any], reference: Any) -> None:
    check_path(
        product_mixture,
        wrong_map,
        1,
        "denoiser",
        reference=reference,
        **{"resample": "systematic", **options},
    )


def test_a_clipped_step_weighed_by_its_own_gradient_is_caught(
    product_mixture: Any, wrong_map: Any, monkeypatch: pytest.MonkeyPatch, reference: Any
) -> None:
    """The density ratio of the step that was not taken."""
    guided, shift_of = dynamics.guided, dynamics.shift_of

    def full(gradient: Tensor, kernel: Any, h: float, strength: Any, *_: Any) -> Any:
        clipped = shift_of(gradient, kernel, h, strength, 0.05, 0.0, "clipped")
        return clipped, shift_of(gradient, kernel, h, strength, 1.0, 0.0)

    def wrongly(kernel: Any, shift: Any, noise: Any) -> Any:
        taken, weighed = (None, None) if shift is None else shift
        return guided(kernel, taken, noise)[0], guided(kernel, weighed, noise)[1]

    monkeypatch.setattr(dynamics, "shift_of", lambda *a: Pair(*full(*a)))
    monkeypatch.setattr(dynamics, "guided", wrongly)
    options = {"weights": "path", "num_steps": PATH_STEPS, "resample": "systematic"}
    found = estimate(run_tilt(product_mixture, wrong_map, 1, "denoiser", **options))
    truth = reference(1)
    assert deviations(found, truth.value, truth.standard_error).max() > 4


class Pair(NamedTuple):
    """The increment that is taken, and the one that is weighed."""

    taken: Shift
    weighed: Shift

    @property
    def length_squared(self) -> Tensor:
        return self.taken.length_squared


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_exact_weights_with_a_drift(lookahead: str) -> None:
    check_exact(Close, CloseWrong, 1, lookahead, chi=0.4)


@pytest.mark.parametrize(
    "lookahead",
    ["flow_map", *(pytest.param(x, marks=pytest.mark.slow) for x in LOOKAHEADS if x != "flow_map")],
)
def test_path_weights_with_a_drift_between_separated_modes(
    product_mixture: Any, wrong_map: Any, lookahead: str, reference: Any
) -> None:
    """No Laplacian is asked for, so a map that bends sharply costs no more steps than any other."""
    check_path(product_mixture, wrong_map, 1, lookahead, "systematic", reference, chi=lambda t: 0.4 * (1 - t))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_exact_weights_of_every_schedule(
    product_mixture: Any, wrong_map: Any, lookahead: str, name: str
) -> None:
    check_exact(product_mixture, wrong_map, 1, lookahead, schedule=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_path_weights_of_every_schedule(
    product_mixture: Any, wrong_map: Any, lookahead: str, name: str, reference: Any
) -> None:
    check_path(product_mixture, wrong_map, 2, lookahead, "systematic", reference, schedule=name)


@pytest.mark.slow
@pytest.mark.parametrize("resample", ("systematic", "none"))
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_exact_weights_with_a_drift_in_two_dimensions(lookahead: str, resample: str) -> None:
    """The rewards' coordinates interact, so the probes are noisy."""
    check_exact(Close, CloseWrong, 2, lookahead, resample, chi=0.4)


def off(product_mixture: Any, wrong_map: Any, **options: Any) -> Tensor:
    found = estimate(run_tilt(product_mixture, wrong_map, 1, "denoiser", num_steps=100, **options))
    return deviations(found, closed_form(product_mixture, 1))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ("sign", "generator", "square"))
def test_a_wrong_weight_of_the_drift_is_caught(
    product_mixture: Any, wrong_map: Any, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """The sign of chi turned round, L f or the square of the gradient left out."""
    rate = weights.rate

    def changed(known: Any, strength: Any, chi: float) -> Tensor | None:
        if known.residual is None or wrong == "sign":
            return rate(known, strength, -chi)
        plain, full = rate(known, strength, 0.0), rate(known, strength, chi)
        assert plain is not None and full is not None
        square = chi * strength**2 * known.gradient.double().square().sum(1)
        return full - square if wrong == "square" else plain + square

    monkeypatch.setattr(weights, "rate", changed)
    assert off(product_mixture, wrong_map, chi=0.4).max() > 4


@pytest.mark.parametrize("name", ("linear", pytest.param("adaptive", marks=pytest.mark.slow)))
def test_a_schedule_that_does_not_end_at_one_is_caught(
    product_mixture: Any, wrong_map: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    strengths, next_strength = schedule.strengths, adaptive.next_strength
    monkeypatch.setattr(schedule, "strengths", lambda *a: tuple(0.9 * s for s in strengths(*a)))
    monkeypatch.setattr(adaptive, "next_strength", lambda *a: next_strength(*a).clamp_max(0.9))
    assert off(product_mixture, wrong_map, schedule=name).max() > 4
