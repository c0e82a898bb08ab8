"""Symmetries: closed-form values, who reaches the largest one, invariances, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.rewards import build
from fmtt.rewards.symmetry import Antisymmetry, Rotation, Symmetry, reflect

UNIT = (0.0, 1.0)


def images(generator: torch.Generator, shape=(4, 3, 6, 6)) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def test_the_axes_are_what_their_names_say():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert reflect(x, "vertical").flatten().tolist() == [1, 0, 3, 2]
    assert reflect(x, "horizontal").flatten().tolist() == [2, 3, 0, 1]


def test_values_of_one_bright_pixel():
    """One white pixel on black, H W = 16: two pixels differ from their image by 1; no pixel is a negative."""
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 1] = 1
    assert Symmetry(strength=8.0, value_range=UNIT)(x).item() == pytest.approx(-8 * 2 / 16)
    assert Rotation(strength=8.0, value_range=UNIT)(x).item() == pytest.approx(-8 * 2 / 16)
    assert Rotation(90, strength=8.0, value_range=UNIT)(x).item() == pytest.approx(-8 * 2 / 16)
    assert Antisymmetry(strength=8.0, value_range=UNIT)(x).item() == pytest.approx(-8 * 14 / 16)


@pytest.mark.parametrize("axis", ["vertical", "horizontal"])
def test_symmetric_pictures_score_highest_and_others_do_not(axis, generator):
    x = images(generator)
    even, odd = (x + reflect(x, axis)) / 2, (x - reflect(x, axis)) / 2
    symmetry, antisymmetry = (kind(axis, value_range=UNIT) for kind in (Symmetry, Antisymmetry))
    assert symmetry(even).abs().max() < 1e-20
    assert antisymmetry(odd + 0.5).abs().max() < 1e-20
    assert symmetry(x).max() < -1 and antisymmetry(x).max() < -1
    # Only the odd part of a picture breaks its symmetry, only the even one its antisymmetry.
    torch.testing.assert_close(symmetry(x), -1000 * 4 * odd.square().mean((1, 2, 3)))
    torch.testing.assert_close(antisymmetry(x), -1000 * 4 * (even - 0.5).square().mean((1, 2, 3)))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_averages_over_the_rotation_group_score_highest(degrees, generator):
    x = images(generator)
    reward = Rotation(degrees, value_range=UNIT)
    orbit = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)])
    assert reward(orbit.mean(0)).abs().max() < 1e-20
    assert reward(x).max() < -1
    half_turn_only = (x + x.rot90(2, (-2, -1))) / 2
    assert (reward(half_turn_only).abs().max() < 1e-20) == (degrees == 180)


@pytest.mark.parametrize(
    "reward", [Symmetry(), Symmetry("horizontal"), Antisymmetry(), Rotation(), Rotation(90)], ids=repr
)
def test_invariances(reward, generator):
    """The score is that of the transformed picture, and of the picture in another range of values."""
    x = images(generator) * 2 - 1
    transformed = x.rot90(1, (-2, -1)) if isinstance(reward, Rotation) else reflect(x, reward.axis)
    torch.testing.assert_close(reward(x), reward(transformed))
    same = type(reward)(
        *([reward.degrees] if isinstance(reward, Rotation) else [reward.axis]), value_range=UNIT
    )
    torch.testing.assert_close(reward(x), same((x + 1) / 2))
    assert reward.differentiable and reward.description.value_range[1] == 0


@pytest.mark.parametrize(
    "reward", [Symmetry(strength=3.0), Antisymmetry("horizontal", strength=3.0), Rotation(270, strength=3.0)]
)
def test_gradients(reward, generator, check_gradient):
    check_gradient(reward, images(generator))


def test_specifications_round_trip():
    for spec in ("symmetry:axis=horizontal,strength=2", "antisymmetry:axis=vertical,strength=2"):
        assert repr(build(spec)) == spec
    assert repr(build("rotation:degrees=90,strength=2")) == "rotation:degrees=90,strength=2"
    assert repr(build("symmetry")) == repr(Symmetry())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Symmetry("diagonal"), "axis must be vertical or horizontal"),  # pyright: ignore[reportArgumentType]
        (lambda: Symmetry(strength=-1.0), "strength must be positive"),
        (lambda: Rotation(45), "degrees must be 90, 180 or 270, got 45"),
        (lambda: Rotation(90)(torch.zeros(1, 3, 4, 6)), "needs square images"),
        (lambda: Symmetry()(torch.zeros(2, 5)), "samples of shape 5"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
