"""SANA: linear attention over deeply compressed latents, cross-attention to a masked prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmtt.models.diffusers import masked_prompt
from fmtt.models.diffusers.family import LatentTransformer, Names


class Sana(LatentTransformer):
    """SANA's transformer, of 1.0 and 1.5; Sprint's is :mod:`fmtt.models.diffusers.sana_sprint`."""

    names = Names(
        family="sana",
        pipeline="SanaPipeline",
        transformer="SanaTransformer2DModel",
        vae="AutoencoderDC",
        embedding="time_embed.emb",
        conditions=(masked_prompt.TOKENS, masked_prompt.MASK),
        lora=(
            *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
            *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        ),
    )

    @classmethod
    def widths(cls, config: Any) -> dict[str, int]:
        return {masked_prompt.TOKENS: config["caption_channels"]}

    @classmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        return masked_prompt.encode(pipeline, texts, negative, options)

    @property
    def time_scale(self) -> float:
        return 1000.0 * self.transformer.config.timestep_scale

    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out = self.transformer(
            x,
            encoder_hidden_states=cond[masked_prompt.TOKENS],
            encoder_attention_mask=cond[masked_prompt.MASK],
            timestep=self.time_scale * sigma,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]  # some checkpoints predict a variance too
