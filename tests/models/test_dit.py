"""The transformer's own geometry; what it shares with every network is in test_networks.py."""

from __future__ import annotations

import pytest
import torch

from fmtt.models.dit import DiT
from fmtt.models.norm import rms_norm


def small(**kwargs: float) -> DiT:
    network = DiT((2, 4, 6), patch=2, dim=16, depth=2, heads=2, **kwargs).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return network


def test_starts_as_the_zero_function():
    x, t = torch.randn(3, 2, 4, 4), torch.rand(3)
    assert torch.equal(DiT((2, 4, 4), patch=2, dim=16, depth=1, heads=2)(x, t, t), torch.zeros_like(x))


def test_images_need_not_be_square():
    x, t = torch.randn(3, 2, 4, 6, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    assert small()(x, t, t).shape == x.shape


def test_patches_return_to_their_place():
    """With attention off and one patch changed, only that patch of the output changes."""
    network = small()
    for block in network.blocks:
        torch.nn.init.zeros_(block.get_submodule("proj").get_parameter("weight"))
    x, t = torch.randn(1, 2, 4, 6, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    y = x.clone()
    y[..., 2:4, 4:6] += 1
    changed = (network(x, t, t) - network(y, t, t)).abs().amax(1)[0] > 1e-9  # (H, W)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(changed, expected)


def test_attention_lets_patches_see_each_other():
    network = small()
    x, t = torch.randn(1, 2, 4, 6, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    y = x.clone()
    y[..., 2:4, 4:6] += 1
    assert ((network(x, t, t) - network(y, t, t)).abs().amax(1) > 1e-9).all()


def test_rms_norm_has_unit_mean_square_in_every_dtype():
    x = 30 * torch.randn(7, 64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        y = rms_norm(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(
            y.double().square().mean(-1), torch.ones(7, dtype=torch.float64), rtol=0.02, atol=0
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 3}, "patch 3 does not divide"),
        ({"dim": 18}, "divisible by 4"),
        ({"heads": 3}, "heads 3"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        DiT((3, 8, 8), **{"patch": 4, "dim": 16, "heads": 4, **arguments})  # pyright: ignore[reportArgumentType]
