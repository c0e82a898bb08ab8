"""Averages of the student's weights: the recursion's closed form, swapping, saving."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.ema import Ema


def layer() -> nn.Linear:
    linear = nn.Linear(2, 2)
    linear.bias.requires_grad_(False)
    return linear


def set_weight(linear: nn.Linear, value: float) -> None:
    with torch.no_grad():
        linear.weight.fill_(value)


def test_closed_form_for_several_half_lives():
    linear = layer().double()
    set_weight(linear, 1.0)
    half_lives = [0.0, 3.0, 8.0]
    ema = Ema(linear, half_lives)
    first, last = 101, 140  # from here on the ramp step / 10 is longer than every half-life
    set_weight(linear, 0.0)
    for step in range(first, last + 1):
        ema.update(linear, step)
    for half_life, average in zip(half_lives, ema.averages, strict=True):
        expected = 0.5 ** ((last - first + 1) / half_life) if half_life else 0.0
        torch.testing.assert_close(average["weight"], torch.full((2, 2), expected, dtype=torch.float64))
        assert "bias" not in average


def test_the_start_is_forgotten_early():
    linear = layer()
    set_weight(linear, 1.0)
    ema = Ema(linear, [1000.0])
    set_weight(linear, 0.0)
    for step in range(1, 21):
        ema.update(linear, step)
    assert float(ema.averages[0]["weight"].max()) < 1e-4


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_in_and_back(fails):
    linear = layer()
    set_weight(linear, 1.0)
    ema = Ema(linear, [1.0, 5.0])
    set_weight(linear, 2.0)
    ema.averages[1]["weight"].fill_(7.0)
    before = linear.weight.detach().clone()
    try:
        with ema.swapped_in(linear, 1):
            assert bool((linear.weight == 7).all())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(linear.weight, before) and bool((ema.averages[1]["weight"] == 7).all())


def test_state_round_trip():
    linear = layer()
    ema, again = Ema(linear, [1.0, 5.5]), Ema(linear, [1.0, 5.5])
    set_weight(linear, 3.0)
    ema.update(linear, 1000)
    again.load_state_dict(ema.state_dict())
    for a, b in zip(ema.averages, again.averages, strict=True):
        assert torch.equal(a["weight"], b["weight"]) and a["weight"] is not b["weight"]
    with pytest.raises(ValueError, match="half_lives"):
        Ema(linear, [2.0]).load_state_dict(ema.state_dict())
