"""Rewards by name: values, sums, quotes, what a caller offers, and one line for every mistake."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import REWARDS, Composite, build, parse
from fmtt.rewards.clock_reward import ClockReward
from fmtt.rewards.symmetry import Symmetry


class Toy:
    """Keeps what it is given."""

    def __init__(
        self,
        steps: int = 1,
        fast: bool = False,
        mode: Literal["sum", "mean"] = "sum",
        question: str = "",
        texts: tuple[str, ...] = (),
        numbers: tuple[float, ...] = (),
        pair: tuple[int, int] | None = None,
        mask: str | Tensor | None = None,
        size: float | Literal["auto"] = "auto",
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self.given = {key: value for key, value in locals().items() if key != "self"}

    def __call__(self, x1, cond=None):
        return x1.flatten(1).sum(1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(REWARDS, "toy", Toy)

    def given(spec: str, **context):
        reward = build(spec, **context)
        assert isinstance(reward, Toy)
        return reward.given

    return given


def test_defaults_values_and_round_trip():
    assert repr(build("clock")) == repr(ClockReward())
    reward = build("clock:time=10:10,sharpness=2.5")
    assert isinstance(reward, ClockReward)
    assert (reward.target, reward.sharpness) == (610, 2.5)
    assert repr(build(repr(reward))) == repr(reward)
    assert repr(build("clock: sharpness = 2.5 , time = 10:10")) == repr(reward)


def test_a_sum_and_a_weight_make_a_composite():
    reward = build("clock:time=3:47 + 0.5*symmetry + 1e-2*rotation:degrees=90")
    assert isinstance(reward, Composite)
    assert reward.weights == {"clock:time=3:47": 1.0, "symmetry": 0.5, "rotation:degrees=90": 0.01}
    assert isinstance(build("2*clock"), Composite)
    assert isinstance(build("1*clock"), ClockReward)


def test_values_are_converted_as_annotated(toy):
    assert toy("toy:steps=3,fast=True,mode=mean,size=2") | {} == toy(
        "toy: size = 2.0, mode = mean, fast = true, steps = 3"
    )
    given = toy("toy:texts=a: b|c,numbers=1:-2.5,pair=3:4,mask=dir/file.png,size=auto")
    assert (given["texts"], given["numbers"], given["pair"]) == (("a: b", "c"), (1.0, -2.5), (3, 4))
    assert (given["mask"], given["size"], toy("toy:size=2")["size"]) == ("dir/file.png", "auto", 2.0)
    assert toy("toy:pair=none")["pair"] is None


def test_a_quoted_value_may_hold_separators(toy):
    question = "Is it 3:47, or 2 + 2 = 4*1?"
    assert toy(f'toy:question="{question}",steps=2')["question"] == question
    reward = build(f'clock + 2*toy:question="{question}"')
    assert isinstance(reward, Composite) and list(reward.weights.values()) == [1.0, 2.0]


@pytest.mark.parametrize("question", ["C++", "2+2", "a+clocks", "a +clock tower", '"red+clock"'])
def test_a_plus_sign_that_joins_no_rewards_is_a_value(question: str, toy):
    assert toy(f"toy:question={question}")["question"] == question.strip('"')


def test_a_caller_offers_what_a_specification_does_not_set(toy):
    assert toy("toy", value_range=(-0.5, 0.5), device="cpu")["value_range"] == (-0.5, 0.5)
    assert toy("toy:value_range=0:1", value_range=(-0.5, 0.5))["value_range"] == (0.0, 1.0)
    symmetry = build("symmetry", value_range=(0, 255))
    assert isinstance(symmetry, Symmetry) and symmetry.value_range == (0, 255)
    build("clock", value_range=(0, 1))  # which has no such argument


def test_parsing_builds_nothing(monkeypatch: pytest.MonkeyPatch):
    def maker(path: str):
        raise AssertionError("built")

    monkeypatch.setitem(REWARDS, "heavy", maker)
    (term,) = parse("heavy:path=x")
    assert term.values == {"path": "x"} and term.weight == 1


def test_a_function_may_make_a_reward(monkeypatch: pytest.MonkeyPatch):
    def maker(steps: int = 1, fast: bool = False):
        return lambda x1, cond=None: x1.flatten(1).sum(1) * steps * fast

    monkeypatch.setitem(REWARDS, "made", maker)
    assert build("made:steps=3,fast=true")(torch.ones(2, 2), None).tolist() == [6, 6]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "does not begin with a name; write NAME:key=value,... + 0.5*NAME:key=value,...; rewards: clock"),
        ("clock time=3:47", "'clock time=3:47' does not begin with a name"),
        ("clock,sharpness=3", "'clock,sharpness=3' does not begin with a name"),
        ("2*", "'2*' does not begin with a name"),
        ("clok:time=3:47", "did you mean 'clock'"),
        ("clock:tme=3:47", "no key 'tme'; keys: time, sharpness"),
        ("clock:tme=3:47", "did you mean 'time'?"),
        ("clock:zzz=1", "keys: time, sharpness"),
        ("clock:time", "'time' is not key=value"),
        ("clock:time=3:47,", "is not key=value"),
        ("clock:time=25:00", "h:mm"),
        ("clock:sharpness=high", "sharpness must be a number, got 'high'"),
        ("clock:sharpness=0", "sharpness must be positive"),
        ("clock:sharpness=1,sharpness=2", "given twice"),
        ("clock + clock", "'clock' is given twice; add the weights"),
        ("clock + ", "reward '' does not begin with a name"),
        ("clock + clok", "did you mean 'clock'"),
        ("half*clock", "the weight of a reward must be a number, got 'half'"),
        ("clock*2", "must be a number, got 'clock' in 'clock*2'; write NAME:key=value,... + 0.5*NAME:"),
        ("clock+symmetry", "reward 'clock+symmetry': a plus sign needs a space, and a reward, on both"),
        ("clock+0.5*symmetry", "a plus sign needs a space"),
        ("2*clock +symmetry", "a plus sign needs a space"),
        ("clock +", "a plus sign needs a space, and a reward, on both of its sides; write NAME:"),
        ("+ clock", "a plus sign needs a space"),
        ("clock:time=3:47 +", "a plus sign needs a space"),
        ("clock:time=3:47+2*symmetry:axis=vertical", "a plus sign needs a space"),
        ("toy:question=red+-1e-1*clock", "a plus sign needs a space"),
        ("toy:question=red+clock", "a value that holds such a sign stands in double quotes"),
        ("0*clock", "finite and not 0"),
        ("nan*clock", "finite and not 0"),
        ('toy:question="open', "a double quote is not closed"),
        ("toy:question=red, or blue", "put a value that holds a comma in double quotes"),
        ("toy:steps=1.5", "must be a whole number, got '1.5'"),
        ("toy:fast=1", "must be true or false, got '1'"),
        ("toy:mode=summ", "must be one of sum, mean, got 'summ'; did you mean 'sum'?"),
        ("toy:pair=1:2:3", "must be 2 numbers separated by :, got '1:2:3'"),
        ("toy:pair=1:x", "pair must be 2 numbers separated by :, got '1:x'"),
        ("toy:size=big", "must be a number or auto, got 'big'"),
        ("symmetry:axis=diagonal", "axis must be one of vertical, horizontal"),
        ("symmetry:value_range=1:0", "low < high, got 1:0"),
        ("colour", "reward 'colour' needs rgb=...; keys: rgb, strength"),
        ("blur", "needs measurement=..."),
    ],
)
def test_a_wrong_specification_is_one_clear_line(spec: str, message: str, toy):
    with pytest.raises(UserError) as caught:
        build(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
