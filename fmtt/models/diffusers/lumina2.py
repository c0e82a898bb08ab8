"""Lumina-Image 2.0: one sequence of prompt and image tokens, in a time that runs from noise to data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmtt.errors import UserError
from fmtt.models.diffusers import masked_prompt
from fmtt.models.diffusers.family import LatentTransformer, Names


class Lumina2(LatentTransformer):
    """The transformer of Lumina-Image 2.0.

    It alone among the families has noise at time 0 and predicts data - noise, as the flow maps here do; its
    time is not scaled. Guidance is the plain u(negative) + w (u - u(negative)): what diffusers' pipeline
    computes with ``cfg_normalization=False``, since a rescaled velocity is no sum of two.
    """

    names = Names(
        family="lumina2",
        pipeline="Lumina2Pipeline",
        transformer="Lumina2Transformer2DModel",
        vae="AutoencoderKL",
        embedding="time_caption_embed.timestep_embedder",
        conditions=(masked_prompt.TOKENS, masked_prompt.MASK),
        lora=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
        ),
        output="norm_out.linear_2",
        scheduler="FlowMatchEulerDiscreteScheduler",
    )

    @classmethod
    def widths(cls, config: Any) -> dict[str, int]:
        return {masked_prompt.TOKENS: config["cap_feat_dim"]}

    @classmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        return masked_prompt.encode(pipeline, texts, negative, options)

    def embedded(self, t: Tensor) -> Tensor:
        return self.transformer.time_caption_embed.time_proj(t).to(self.dtype)

    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        length, places = int(cond[masked_prompt.MASK].sum(1).max()), self.transformer.config.axes_lens[0]
        if length >= places:  # the picture takes the place after the prompt
            raise UserError(
                f"the prompt has {length} tokens, this lumina2 model has room for {places - 1}: shorten it, "
                f"or encode with a max_sequence_length of {places - 1}"
            )
        patch, most = self.transformer.config.patch_size, self.transformer.config.axes_lens[1:]
        if any(side // patch > n for side, n in zip(x.shape[2:], most, strict=True)):
            raise UserError(f"this lumina2 model has room for {most} tokens a side: make it smaller")
        out = self.transformer(
            hidden_states=x.contiguous(),
            timestep=1 - sigma,
            encoder_hidden_states=cond[masked_prompt.TOKENS],
            encoder_attention_mask=cond[masked_prompt.MASK],
            return_dict=False,
        )[0]
        return -out
