"""FLUX.1: guidance-embedded dev, and schnell, which is few-step. Latents travel as packed 2 x 2 patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmtt.models.diffusers.family import SCALE, LatentTransformer, Names


def pack(x: Tensor) -> Tensor:
    """Latents (B, C, H, W) to tokens (B, H/2 * W/2, 4 C)."""
    B, C, H, W = x.shape
    return x.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H * W // 4, 4 * C)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/2 * W/2, 4 C) to latents (B, C, H, W)."""
    B, _, channels = tokens.shape
    x = tokens.reshape(B, height // 2, width // 2, channels // 4, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, channels // 4, height, width)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """Rows (0, y, x) of the tokens of an H x W latent, (H/2 * W/2, 3), in the dtype of ``like``."""
    y = torch.arange(height // 2, device=like.device).repeat_interleave(width // 2)
    x = torch.arange(width // 2, device=like.device).repeat(height // 2)
    return torch.stack([torch.zeros_like(y), y, x], dim=1).to(like.dtype)


class Flux(LatentTransformer):
    """FLUX.1's transformer."""

    names = Names(
        family="flux",
        pipeline="FluxPipeline",
        transformer="FluxTransformer2DModel",
        vae="AutoencoderKL",
        embedding="time_text_embed",
        conditions=("prompt_embeds", "pooled_prompt_embeds"),
        lora=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
        ),
        scheduler="FlowMatchEulerDiscreteScheduler",
    )

    guided = False

    @classmethod
    def embeds_guidance(cls, transformer: nn.Module) -> bool:
        config: Any = transformer.config
        return bool(config.guidance_embeds)

    @classmethod
    def latent_channels(cls, config: Any) -> int:
        return config["in_channels"] // 4

    @classmethod
    def patch(cls, config: Any) -> int:
        return 2

    @classmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        text, pooled, _ = pipeline.encode_prompt(prompt=texts, prompt_2=None, **options)
        return {"prompt_embeds": text, "pooled_prompt_embeds": pooled}

    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        text = cond["prompt_embeds"]
        out = self.transformer(
            hidden_states=pack(x),
            timestep=sigma,
            guidance=cond[SCALE].float() if self.embeds_guidance(self.transformer) else None,
            pooled_projections=cond["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=positions(x.shape[2], x.shape[3], x),
            return_dict=False,
        )[0]
        return unpack(out, x.shape[2], x.shape[3])
