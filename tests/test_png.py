"""The PNG encoder against an independent decoder, and the mapping of values to RGB."""

from __future__ import annotations

import io

import pytest
import torch

from fmtt import png
from fmtt.errors import UserError


def test_encoded_pixels_come_back_exactly():
    image = pytest.importorskip("matplotlib.image")
    rgb = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0)) / 255
    decoded = torch.tensor(image.imread(io.BytesIO(png.encode(rgb)), format="png"))
    assert torch.allclose(decoded.permute(2, 0, 1), rgb, atol=1e-6)


def test_grid_places_images_row_by_row():
    rgb = torch.stack([torch.full((3, 2, 2), k / 10) for k in range(5)])
    canvas = png.grid(rgb, columns=3, gap=1, scale=2)
    assert canvas.shape == (3, 2 * 7, 2 * 10)
    assert float(canvas[0, 2, 2]) == 0.0 and float(canvas[0, 2, 8]) == pytest.approx(0.1)
    assert float(canvas[0, 8, 2]) == pytest.approx(0.3) and float(canvas[0, 8, 14]) == 1.0


def test_values_map_to_rgb():
    grey = torch.tensor([-0.5, 0.0, 0.5, 9.0]).reshape(1, 1, 2, 2)
    rgb = png.to_rgb(grey, (-0.5, 0.5))
    assert rgb.shape == (1, 3, 2, 2) and rgb[0, 1].flatten().tolist() == [0.0, 0.5, 1.0, 1.0]


def test_value_range_of_a_config():
    assert png.value_range({"trained": {}}) == (-1.0, 1.0)
    assert png.value_range({"trained": {"value_range": [-0.5, 0.5]}}) == (-0.5, 0.5)
    for bad in ([1, 0], "grey", [0, 1, 2], None):
        with pytest.raises(UserError, match="value_range must be"):
            png.value_range({"trained": {"value_range": bad}})


def test_what_counts_as_an_image():
    assert png.is_image((3, 32, 32)) and png.is_image((1, 8, 8))
    assert not png.is_image((2,)) and not png.is_image((16, 8, 8))
