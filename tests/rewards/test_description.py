"""Descriptions: what a reward states, what is assumed of one that states nothing, and batch limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import REWARDS, Described, Description, describe
from fmtt.rewards.description import score


class Limited(Described):
    """Adds up samples, a few at a time."""

    description = Description("adds up", differentiable=False, max_batch=3)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x1: Tensor, cond=None) -> Tensor:
        self.sizes.append(len(x1))
        return x1.flatten(1).sum(1) + (cond["shift"] if cond else 0)


def test_a_plain_callable_is_described_by_its_first_line():
    def reward(x1: Tensor, cond=None) -> Tensor:
        """Says little.

        And more.
        """
        return x1.sum(1)

    assert describe(reward) == Description("Says little.", None, (-math.inf, math.inf))
    assert describe(lambda x1, cond=None: x1.sum(1)).summary == "<lambda>"


def test_a_declared_gradient_is_kept():
    class Declared:
        """Declares."""

        differentiable = False

        def __call__(self, x1, cond=None):
            return x1.sum(1)

    assert describe(Declared()).differentiable is describe(Declared).differentiable is False


def test_the_attribute_that_steering_reads_follows_the_description():
    assert Limited().differentiable is False
    assert describe(Limited()) is describe(Limited) is Limited.description


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"value_range": (1, 0)}, "low, high"),
        ({"space": "paint"}, "got 'paint'"),
        ({"max_batch": 0}, "at least 1"),
    ],
)
def test_a_wrong_description_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Description("wrong", **wrong)


def test_a_batch_limit_splits_samples_and_conditions(generator):
    reward, x = Limited(), torch.randn(8, 2, generator=generator)
    shift = torch.arange(8.0)
    torch.testing.assert_close(score(reward, x, {"shift": shift}), x.sum(1) + shift)
    assert reward.sizes == [3, 3, 2]


@pytest.mark.parametrize("name", REWARDS)
def test_every_named_reward_has_a_summary_of_one_line(name):
    described = describe(REWARDS[name])
    assert described.summary and "\n" not in described.summary
    assert described.differentiable is not None
