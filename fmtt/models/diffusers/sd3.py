"""Stable Diffusion 3 and 3.5: guided by two passes, with and without the prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmtt.models.diffusers.family import NEGATIVE, LatentTransformer, Names


class SD3(LatentTransformer):
    """The transformer of SD3 and SD3.5."""

    names = Names(
        family="sd3",
        pipeline="StableDiffusion3Pipeline",
        transformer="SD3Transformer2DModel",
        vae="AutoencoderKL",
        embedding="time_text_embed",
        conditions=("prompt_embeds", "pooled_prompt_embeds"),
        lora=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
            *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        ),
    )

    @classmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        text, other, pooled, other_pooled = pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=negative,
            do_classifier_free_guidance=negative is not None,
            **options,
        )
        cond = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
        if negative is not None:
            cond |= {NEGATIVE + "prompt_embeds": other, NEGATIVE + "pooled_prompt_embeds": other_pooled}
        return cond

    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=self.time_scale * sigma,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
