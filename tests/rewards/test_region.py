"""Regions: which pixels they hold, and the brightness and colour rewards on them."""

from __future__ import annotations

import pytest
import torch

from fmtt import png
from fmtt.errors import UserError
from fmtt.rewards import build
from fmtt.rewards.picture import LUMA
from fmtt.rewards.region import Brightness, Colour, Region

UNIT = (0.0, 1.0)
BLANK = torch.zeros(1, 3, 4, 4)


def test_a_box_holds_the_pixels_whose_centres_it_holds():
    weights = Region(box=(0.5, 0.0, 1.0, 0.5)).weights(BLANK)
    expected = torch.zeros(4, 4)
    expected[:2, 2:] = 1
    assert torch.equal(weights, expected)
    assert torch.equal(Region(box=(0.45, 0, 0.7, 0.2)).weights(BLANK).nonzero(), torch.tensor([[0, 2]]))


def test_a_disc_is_round_on_pictures_that_are_not_square():
    weights = Region(centre=(0.5, 0.5), radius=0.5).weights(torch.zeros(1, 1, 20, 40))
    assert torch.equal(weights.any(0).nonzero()[[0, -1]], torch.tensor([[10], [29]]))
    assert torch.equal(weights.any(1).nonzero()[[0, -1]], torch.tensor([[0], [19]]))
    assert float(weights.sum()) == pytest.approx(torch.pi * 10**2, rel=0.02)


def test_without_a_form_it_is_the_whole_picture_and_a_mask_keeps_its_shades(tmp_path):
    assert torch.equal(Region().weights(BLANK), torch.ones(4, 4))
    mask = torch.zeros(4, 4)
    mask[1, 2], mask[3, 3] = 1.0, 0.2
    png.write(tmp_path / "mask.png", mask.expand(3, 4, 4))
    torch.testing.assert_close(Region(mask=str(tmp_path / "mask.png")).weights(BLANK), mask)
    assert torch.equal(Region(mask=mask).weights(BLANK), mask)


def test_brightness_reads_the_mean_of_the_region_alone(generator):
    x = torch.rand(5, 3, 4, 4, generator=generator)
    reward = Brightness(0.25, strength=8.0, box=(0, 0, 0.5, 1), value_range=UNIT)
    mean = (x[..., :2] * torch.tensor(LUMA)[:, None, None]).sum(1).mean((1, 2))
    torch.testing.assert_close(reward(x), -8 * (mean - 0.25).square())
    other = x.clone()
    other[..., 2:] = 9.0
    torch.testing.assert_close(reward(other), reward(x))
    grey = torch.rand(5, 1, 4, 4, generator=generator)
    torch.testing.assert_close(Brightness(0.0, 1.0, value_range=UNIT)(grey), -grey.mean((1, 2, 3)).square())


def test_brightness_has_its_stated_range():
    for level, target in ((0.0, 1.0), (1.0, 0.0)):
        assert Brightness(target, 5.0, value_range=UNIT)(BLANK + level).item() == pytest.approx(-5)
        assert Brightness(level, 5.0, value_range=UNIT)(BLANK + level).item() == pytest.approx(0, abs=1e-9)


def test_colour_counts_every_pixel(generator):
    x = torch.rand(5, 3, 4, 4, generator=generator)
    target = torch.tensor([1.0, 0.5, 0.0])
    reward = Colour((1.0, 0.5, 0.0), strength=2.0, box=(0, 0.75, 1, 1), value_range=UNIT)
    square = (x[:, :, 3] - target[:, None]).square().mean((1, 2))
    torch.testing.assert_close(reward(x), -2 * square)
    painted = x.clone()
    painted[:, :, 3] = target[:, None]
    assert reward(painted).abs().max() == 0


def test_scores_do_not_depend_on_the_models_values(generator):
    x = torch.rand(5, 3, 4, 4, generator=generator)
    for spec in ("brightness:target=0.5", "colour:rgb=1:0:0,centre=0.5:0.5,radius=0.4"):
        here, there = build(spec, value_range=UNIT), build(spec, value_range=(-0.5, 0.5))
        torch.testing.assert_close(here(x, None), there(x - 0.5, None))


@pytest.mark.parametrize(
    "reward",
    [
        Brightness(0.9, 4.0, centre=(0.4, 0.5), radius=0.4),
        Colour((0.9, 0.1, 0.2), 4.0, box=(0, 0, 0.6, 0.6)),
        Colour((0.9, 0.1, 0.2), 4.0, mask=torch.linspace(0, 1, 16).reshape(4, 4)),
    ],
    ids=["brightness", "colour", "mask"],
)
def test_gradients(reward, generator, check_gradient):
    check_gradient(reward, torch.randn(3, 3, 4, 4, generator=generator))


def test_specifications_round_trip():
    for spec in (
        "brightness:target=0.5,strength=2",
        "brightness:target=0.5,strength=2,box=0:0.1:0.5:1",
        "colour:rgb=1:0:0.5,strength=2,centre=0.5:0.5,radius=0.25",
    ):
        assert repr(build(spec)) == spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Region(box=(0.5, 0, 0.2, 1)), "box must be left:top:right:bottom"),
        (lambda: Region(box=(0, 0, 32, 32)), "fractions from 0 to 1"),
        (lambda: Region(centre=(0.5, 0.5)), "centre=x:y and radius"),
        (lambda: Region(radius=0.5), "centre=x:y and radius"),
        (lambda: Region(centre=(0.5, 0.5), radius=0.0), "radius must be positive"),
        (lambda: Region(box=(0, 0, 1, 1), mask=torch.ones(4, 4)), "give one of box"),
        (lambda: Region(mask=torch.ones(4, 4) * 2), "values from 0"),
        (lambda: Region(mask=torch.ones(5, 4)).weights(BLANK), "mask is 5 × 4 pixels, the images are 4 × 4"),
        (lambda: Region(box=(0, 0, 0.1, 0.1)).weights(BLANK), "holds no pixel"),
        (lambda: Colour((1.0, 2.0, 0.0)), "rgb must lie between"),
        (lambda: Brightness(-0.1), "target must lie between"),
        (lambda: Colour((1.0,))(BLANK), "rgb has 1 values, the images have 3 channels"),
        (lambda: Brightness(value_range=(1.0, 1.0)), "value_range must be"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
