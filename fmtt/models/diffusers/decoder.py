"""Latents to pictures and back through a diffusers autoencoder, and rewards that look at pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from fmtt.errors import UserError
from fmtt.types import Cond, Reward

OUTPUTS = ("pil", "np", "pt", "latent")
"""What a pipeline may be asked for."""


class Decoder:
    """Latents (B, C, h, w) in the transformer's scale to images (B, 3, H, W) in [0, 1].

    Args:
        vae: an AutoencoderKL or AutoencoderDC; its weights are frozen.
        checkpoint: with gradients, keep the latents only and decode again in the reverse pass.
        tiled: decode in overlapping tiles, which bounds memory and changes pictures slightly at the seams.
        reduce: average latents over squares of this side first, for a smaller picture.
        max_batch: most latents of one pass.
    """

    def __init__(
        self,
        vae: Any,
        *,
        checkpoint: bool = True,
        tiled: bool = False,
        reduce: int = 1,
        max_batch: int | None = None,
    ) -> None:
        if reduce < 1 or (max_batch is not None and max_batch < 1):
            raise UserError(f"reduce and max_batch must be at least 1, got {reduce} and {max_batch}")
        self.vae = vae.requires_grad_(False).eval()
        self.checkpoint, self.tiled, self.reduce, self.max_batch = checkpoint, tiled, reduce, max_batch
        self.scale = float(vae.config["scaling_factor"])
        self.shift = float(vae.config.get("shift_factor") or 0.0)
        self.decodes = 0
        """Latents decoded so far."""

    def __call__(self, latents: Tensor) -> Tensor:
        if latents.shape[0] == 0 or min(latents.shape[2:]) < self.reduce:
            raise UserError(f"there is nothing to decode in latents of shape {tuple(latents.shape)}")
        if self.reduce > 1:
            latents = F.avg_pool2d(latents, self.reduce)
        self.decodes += latents.shape[0]
        parts = latents.split(self.max_batch or latents.shape[0])
        images = [self._decode(part) for part in parts]
        return torch.cat(images).to(latents.dtype)

    def _decode(self, latents: Tensor) -> Tensor:
        if self.checkpoint and latents.requires_grad:
            return recompute(self._plain, latents, use_reentrant=False)  # type: ignore[return-value]
        return self._plain(latents)

    def _plain(self, latents: Tensor) -> Tensor:
        tiled = self.vae.use_tiling
        self.vae.use_tiling = self.tiled
        try:
            out = self.vae.decode((latents / self.scale + self.shift).to(self.vae.dtype), return_dict=False)[
                0
            ]
        finally:
            self.vae.use_tiling = tiled
        return (out / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]: the mean, not a draw."""
        out = self.vae.encode((2 * images - 1).to(self.vae.dtype), return_dict=False)[0]
        mean = out if isinstance(out, Tensor) else out.mode()
        return ((mean - self.shift) * self.scale).to(images.dtype)


class DecodedReward:
    """A reward of pictures as a reward of latents."""

    def __init__(self, reward: Reward, decoder: Decoder) -> None:
        self.reward, self.decoder = reward, decoder
        self.differentiable = getattr(reward, "differentiable", None)
        self.description = getattr(reward, "description", None)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Scores (B,) of latents (B, C, h, w)."""
        return self.reward(self.decoder(x1), cond)


def as_output(images: Tensor, output_type: str) -> Any:
    """Images (B, 3, H, W) in [0, 1] as PIL images, as an array (B, H, W, 3), or ("pt") as they are."""
    from diffusers.image_processor import VaeImageProcessor

    if output_type == "pt":
        return images
    array = VaeImageProcessor.pt_to_numpy(images)
    return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)
