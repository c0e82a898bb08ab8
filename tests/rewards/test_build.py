"""Rewards by name."""

from __future__ import annotations

import pytest

from fmtt.errors import UserError
from fmtt.rewards import REWARDS, build
from fmtt.rewards.clock_reward import ClockReward


def test_defaults_values_and_round_trip():
    assert repr(build("clock")) == repr(ClockReward())
    reward = build("clock:time=10:10,sharpness=2.5")
    assert isinstance(reward, ClockReward)
    assert (reward.target, reward.sharpness) == (610, 2.5)
    assert repr(build(repr(reward))) == repr(reward)
    assert repr(build("clock: sharpness = 2.5 , time = 10:10")) == repr(reward)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown; rewards: clock"),
        ("clok:time=3:47", "did you mean 'clock'"),
        ("clock:tme=3:47", "no key 'tme'; keys: time, sharpness; did you mean 'time'?"),
        ("clock:zzz=1", "keys: time, sharpness"),
        ("clock:time", "'time' is not key=value"),
        ("clock:time=3:47,", "is not key=value"),
        ("clock:time=25:00", "h:mm"),
        ("clock:sharpness=high", "sharpness must be a number, got 'high'"),
        ("clock:sharpness=0", "sharpness must be positive"),
        ("clock:sharpness=1,sharpness=2", "given twice"),
    ],
)
def test_a_wrong_specification_is_one_clear_line(spec: str, message: str):
    with pytest.raises(UserError) as caught:
        build(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_converted_as_annotated(monkeypatch: pytest.MonkeyPatch):
    def maker(steps: int = 1, fast: bool = False):
        return lambda x1, cond=None: x1.flatten(1).sum(1) * steps * fast

    monkeypatch.setitem(REWARDS, "toy", maker)
    build("toy:steps=3,fast=True")
    for spec, message in (("toy:steps=1.5", "a whole number"), ("toy:fast=1", "true or false")):
        with pytest.raises(UserError, match=message):
            build(spec)
