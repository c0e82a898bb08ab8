"""Latents to pictures: diffusers' own decoding, differentiable with bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fmtt.errors import UserError
from fmtt.models.diffusers.decoder import DecodedReward, Decoder
from fmtt.models.diffusers.pretrained import load_pipeline

Folder = Callable[[str], str]


@pytest.mark.parametrize("name", ["flux", "sana"])
def test_decodes_as_the_pipeline_does(name: str, folder: Folder):
    pipeline = load_pipeline(folder(name))
    vae = pipeline.vae
    latents = torch.randn(2, 4, 4, 4)
    shift = vae.config.get("shift_factor") or 0.0
    with torch.no_grad():
        raw = vae.decode(latents / vae.config.scaling_factor + shift).sample
    wanted = pipeline.image_processor.postprocess(raw, output_type="pt")
    decoder = Decoder(vae, max_batch=1)
    torch.testing.assert_close(decoder(latents), wanted, rtol=0, atol=1e-6)
    assert decoder.decodes == 2
    images = torch.rand(2, 3, 8, 8)
    assert decoder.encode(images).shape == latents.shape


@pytest.mark.parametrize("name", ["flux", "sana"])
def test_the_gradient_is_the_same_with_and_without_checkpointing(name: str, folder: Folder):
    vae = load_pipeline(folder(name)).vae

    def gradient(**options: bool) -> torch.Tensor:
        torch.manual_seed(1)
        latents = torch.randn(2, 4, 4, 4, requires_grad=True)
        reward = DecodedReward(
            lambda x, cond: (x * torch.arange(8.0)).mean((1, 2, 3)), Decoder(vae, **options)
        )
        return torch.autograd.grad(reward(latents).sum(), latents)[0]

    plain = gradient(checkpoint=False)
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradient(checkpoint=True), plain)
    assert not any(p.requires_grad for p in vae.parameters())


def test_tiles_and_reduced_pictures(folder: Folder):
    vae = load_pipeline(folder("flux")).vae
    latents = torch.randn(1, 4, 16, 16, requires_grad=True)
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
    tiled = Decoder(vae, tiled=True)(latents)
    assert tiled.shape == (1, 3, 32, 32)
    assert not torch.equal(tiled, Decoder(vae)(latents)) and not vae.use_tiling
    assert torch.autograd.grad(tiled.sum(), latents)[0].abs().sum() > 0
    assert Decoder(vae, reduce=2)(latents).shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match="at least 1"):
        Decoder(vae, reduce=0)
    with pytest.raises(UserError, match="nothing to decode"):
        Decoder(vae, reduce=32)(latents)
