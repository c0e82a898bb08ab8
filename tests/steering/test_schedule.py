"""Time grids, lambda and noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fmtt.errors import UserError
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.steering import schedule
from fmtt.steering.adaptive import Adaptive


def test_uniform_linear_plan() -> None:
    plan = schedule.build(4, Linear(), noise=2.0)
    assert plan.times == (0.0, 0.25, 0.5, 0.75, 1.0) and plan.strengths == plan.times
    assert plan.noises == (1.5, 1.0, 0.5, 0.0) and plan.num_steps == 4


def test_last_step_is_deterministic_on_every_path() -> None:
    assert schedule.build(7, Trigonometric()).noises[-1] == 0.0


def test_start_in_the_middle() -> None:
    plan = schedule.build(2, Linear(), t_start=0.5)
    assert plan.times == (0.5, 0.75, 1.0) and plan.strengths == (0.0, 0.5, 1.0)


def test_shifted_times_and_ramps() -> None:
    plan = schedule.build(4, Linear(), times="shifted:3", schedule="ramp:0.25")
    assert plan.times == pytest.approx((0, 0.1, 0.25, 0.5, 1)) and plan.times == schedule.time_grid(
        4, lambda u: u / (3 - 2 * u)
    )
    assert plan.strengths == pytest.approx((0, 0, 0, 1 / 3, 1))
    assert schedule.time_grid(4, "shifted:1") == schedule.time_grid(4)


def test_adaptive_names_its_target() -> None:
    assert schedule.build(4, Linear(), schedule="adaptive").adaptive == Adaptive(None)
    assert schedule.build(4, Linear(), schedule="adaptive:0.9").adaptive == Adaptive(0.9)
    assert schedule.build(4, Linear(), schedule=Adaptive(0.9)).adaptive == Adaptive(0.9)
    assert schedule.build(4, Linear()).adaptive is None


def test_the_drift_is_evaluated_at_the_start_of_each_step() -> None:
    assert schedule.drifts(lambda t: 1 - t, (0.0, 0.5, 1.0)) == (1.0, 0.5)


def test_callables_and_explicit_times() -> None:
    plan = schedule.build(4, Linear(), times=lambda u: u * u, schedule=lambda t: t**3, noise=lambda t: 1 - t)
    assert plan.times[1] == 1 / 16 and plan.strengths[2] == (1 / 4) ** 3 and plan.noises[0] == 15 / 16
    given = schedule.build(99, Linear(), times=torch.tensor([0.0, 0.1, 1.0]))
    assert given.num_steps == 2 and given.times[1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"times": "cosine"}, "times"),
        ({"times": "shifted:-1"}, "times"),
        ({"times": "shifted:much"}, "times"),
        ({"schedule": "ramp:1"}, "schedule"),
        ({"schedule": "adaptive:1.5"}, "conditional ESS"),
        ({"times": torch.tensor([0.0, 0.5, 0.4, 1.0])}, "times"),
        ({"times": torch.tensor([0.0, 0.5])}, "times"),
        ({"times": torch.tensor([1.0])}, "times"),
        ({"t_start": 1.0}, "t_start"),
        ({"schedule": "adaptive-ish"}, "schedule"),
        ({"schedule": lambda t: t + 0.1}, "schedule"),
        ({"schedule": lambda t: float("nan") if 0 < t < 1 else t}, "schedule"),
        ({"noise": -1.0}, "noise"),
        ({"noise": lambda t: float("inf")}, "noise"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule.build(**{"num_steps": 4, "interpolant": Linear(), **options})
