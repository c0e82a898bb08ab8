"""Weighted sums: values, parts, gradients, and what their description says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import Composite, Described, Description, build, describe


class Part(Described):
    """A multiple of the mean, described as told."""

    def __init__(self, factor: float = 1.0, **described) -> None:
        self.factor, self.description = factor, Description("part", **described)

    def __call__(self, x1: Tensor, cond=None) -> Tensor:
        return self.factor * x1.mean(1)


def test_the_sum_is_the_weighted_sum_of_its_parts(generator):
    x = torch.randn(5, 3, generator=generator)
    reward = Composite({"a": Part(2.0), "b": Part(-1.0)}, {"b": 0.5})
    parts = reward.parts(x)
    torch.testing.assert_close(parts["a"], 2 * x.mean(1))
    torch.testing.assert_close(parts["b"], -x.mean(1))
    torch.testing.assert_close(reward(x), parts["a"] + 0.5 * parts["b"])
    assert repr(reward) == "a + 0.5*b"


def test_the_gradient_is_the_weighted_sum_of_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    Composite({"a": Part(2.0), "b": Part(4.0)}, {"a": 3.0, "b": -0.25})(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 4), (3 * 2 - 0.25 * 4) / 4))


def test_the_description_follows_from_the_parts():
    bounded = Part(differentiable=True, value_range=(0, 1), max_batch=8, uses_prompt=True)
    other = Part(differentiable=True, value_range=(-2, 3), max_batch=4, space="pixels", remote=True)
    described = describe(Composite({"a": bounded, "b": other}, {"a": 2.0, "b": -1.0}))
    assert described == Description(
        "weighted sum of 2 rewards", True, (-3.0, 4.0), "pixels", uses_prompt=True, max_batch=4, remote=True
    )
    open_ended = Composite({"a": bounded, "b": Part(value_range=(-math.inf, 0))}, {"b": -1.0})
    assert open_ended.description.value_range == (0, math.inf)


@pytest.mark.parametrize(
    ("gradients", "together"),
    [((True, True), True), ((True, False), False), ((True, None), None), ((None, False), False)],
)
def test_a_sum_has_a_gradient_if_all_parts_have(gradients, together):
    parts = {str(k): Part(differentiable=value) for k, value in enumerate(gradients)}
    assert Composite(parts).differentiable is together


def test_a_part_with_a_batch_limit_is_called_within_it(generator):
    x = torch.randn(7, 3, generator=generator)
    sizes = []

    class Counting(Part):
        def __call__(self, x1, cond=None):
            sizes.append(len(x1))
            return super().__call__(x1, cond)

    reward = Composite({"a": Counting(max_batch=2), "b": Part()})
    torch.testing.assert_close(reward(x), 2 * x.mean(1))
    assert sizes == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "at least one part"),
        ({"a": Part()}, {"b": 1.0}, "'b' names no part; parts: a"),
        ({"a": Part()}, {"a": 0.0}, "finite and not 0"),
        ({"a": Part()}, {"a": math.nan}, "finite and not 0"),
        ({"a": Part(space="pixels"), "b": Part(space="latents")}, {}, "'a' scores pixels and 'b' latents"),
    ],
)
def test_parts_that_make_no_sum_are_refused(parts, weights, message):
    with pytest.raises(UserError, match=message):
        Composite(parts, weights)


def test_a_specification_makes_the_same_sum(generator):
    x = torch.rand(3, 3, 32, 32, generator=generator) - 0.5
    reward = build("2*clock:time=3:47,sharpness=4 + -0.5*symmetry:axis=horizontal", value_range=(-0.5, 0.5))
    assert isinstance(reward, Composite)
    assert reward.weights == {"clock:time=3:47,sharpness=4": 2.0, "symmetry:axis=horizontal": -0.5}
    clock = build("clock:time=3:47,sharpness=4")
    symmetry = build("symmetry:axis=horizontal,value_range=-0.5:0.5")
    torch.testing.assert_close(reward(x), 2 * clock(x, None) - 0.5 * symmetry(x, None))
    assert repr(build(repr(reward), value_range=(-0.5, 0.5))) == repr(reward)
