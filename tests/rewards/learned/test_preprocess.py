"""Resize, crop and normalisation against Pillow and against the processors themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fmtt.errors import UserError
from fmtt.rewards.learned import resample
from fmtt.rewards.learned.preprocess import ResizeAndCrop, as_array, check_agreement, random_picture

transformers: Any = pytest.importorskip("transformers")
Image: Any = pytest.importorskip("PIL.Image")

SIZES = [((32, 32), (224, 224)), ((97, 61), (40, 88)), ((50, 64), (50, 20)), ((33, 200), (17, 31))]
FILTERS = [resample.LANCZOS, resample.BILINEAR, resample.BICUBIC]
PROCESSORS = {
    "clip": ("CLIP", {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 40}}),
    "blip": ("Blip", {"size": {"height": 56, "width": 56}}),
    "siglip": ("Siglip", {"size": {"height": 40, "width": 64}}),
}


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resize_is_pillows_to_the_last_bit(
    filter: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    picture = random_picture(*before)
    own = np.array(Image.fromarray(as_array(picture)).resize((after[1], after[0]), filter))
    ours = resample.resize((picture * 255).round(), after, filter, rounding=True)
    assert torch.equal(ours, torch.from_numpy(own).permute(2, 0, 1).float())


@pytest.mark.parametrize("filter", FILTERS)
def test_without_rounding_it_differs_from_pillow_by_rounding_alone(filter: int) -> None:
    """Two roundings move a value by at most half a level each; the filter amplifies the first a little."""
    levels = (random_picture(97, 61) * 255).round()
    rounded = resample.resize(levels, (40, 88), filter, rounding=True)
    smooth = resample.resize(levels, (40, 88), filter)
    assert (smooth - rounded).abs().max() < 1.3
    assert (smooth - rounded).mean().abs() < 0.02


def test_a_wrong_filter_is_caught() -> None:
    """The comparison with Pillow tells the two common cubics, a = -1/2 and a = -3/4, apart."""
    levels = random_picture(97, 61) * 255
    ours = resample.resize(levels, (40, 40), resample.BICUBIC)
    other = torch.nn.functional.interpolate(levels[None], (40, 40), mode="bicubic").clamp(0, 255)[0]
    assert (ours - other).abs().max() > 5


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("size", [(48, 48), (60, 97), (150, 71)])
def test_agrees_with_the_processor(kind: str, size: tuple[int, int]) -> None:
    name, settings = PROCESSORS[kind]
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    picture = random_picture(*size)
    own = processor(as_array(picture), return_tensors="pt")["pixel_values"]
    ours = ResizeAndCrop(processor, rounding=True)(picture[None])
    assert ours.shape == own.shape
    assert (ours - own).abs().max() < 1e-3
    level = 1 / 255 / min(processor.image_std)
    assert (ResizeAndCrop(processor)(picture[None]) - own).abs().max() < 1.3 * level


def test_the_gradient_is_that_of_finite_differences(generator: torch.Generator) -> None:
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}
    )
    preprocess = ResizeAndCrop(processor)
    x = torch.rand(1, 3, 12, 18, generator=generator, dtype=torch.float64) * 0.4 + 0.3
    assert torch.autograd.gradcheck(preprocess, x.requires_grad_(), fast_mode=True)


def test_rounding_passes_the_gradient_straight_through() -> None:
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}
    )
    x = (random_picture(24, 30)[None].double() * 0.4 + 0.3).requires_grad_()
    gradients = []
    for rounding in (False, True):
        out = ResizeAndCrop(processor, rounding=rounding)(x)
        gradients.append(torch.autograd.grad(out.sum(), x)[0])
    assert torch.allclose(*gradients)
    assert gradients[0].abs().sum() > 0


def test_disagreement_is_refused() -> None:
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}
    )
    other = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.4]
    )

    def theirs(image: Any) -> torch.Tensor:
        return other(image, return_tensors="pt")["pixel_values"]

    with pytest.raises(UserError, match="not supported"):
        check_agreement(ResizeAndCrop(processor, rounding=True), theirs, (30, 40))


def test_settings_without_a_counterpart_are_refused() -> None:
    small = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 16, "width": 16}
    )
    with pytest.raises(UserError, match="crops 16×16"):
        ResizeAndCrop(small)(torch.rand(1, 3, 20, 20))
    nearest = transformers.CLIPImageProcessorPil(resample=0)
    with pytest.raises(UserError, match="filter 0"):
        ResizeAndCrop(nearest)(torch.rand(1, 3, 20, 20))
