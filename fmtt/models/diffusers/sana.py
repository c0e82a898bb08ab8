"""SANA: linear attention over deeply compressed latents, cross-attention to a masked prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmtt.errors import UserError
from fmtt.models.diffusers.family import NEGATIVE, LatentTransformer, Names


class Sana(LatentTransformer):
    """SANA's transformer. SANA-Sprint, which runs on a trigonometric path of its own, is refused."""

    names = Names(
        family="sana",
        pipeline="SanaPipeline",
        transformer="SanaTransformer2DModel",
        vae="AutoencoderDC",
        embedding="time_embed.emb",
        conditions=("prompt_embeds", "prompt_attention_mask"),
        lora=(
            *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
            *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        ),
    )

    def __init__(self, transformer: Any, **options: Any) -> None:
        if type(transformer).__name__ == self.names.transformer and transformer.config.guidance_embeds:
            raise UserError(
                "SANA-Sprint is a consistency model on another path: use a SANA 1.0 or 1.5 folder"
            )
        super().__init__(transformer, **options)

    @classmethod
    def widths(cls, config: Any) -> dict[str, int]:
        return {"prompt_embeds": config["caption_channels"]}

    @classmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        text, mask, other, other_mask = pipeline.encode_prompt(
            prompt=texts,
            negative_prompt=negative or "",
            do_classifier_free_guidance=negative is not None,
            **options,
        )
        cond = {"prompt_embeds": text, "prompt_attention_mask": mask}
        if negative is not None:
            cond |= {NEGATIVE + "prompt_embeds": other, NEGATIVE + "prompt_attention_mask": other_mask}
        return cond

    @property
    def time_scale(self) -> float:
        return 1000.0 * self.transformer.config.timestep_scale

    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out = self.transformer(
            x,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_attention_mask"],
            timestep=self.time_scale * sigma,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]  # some checkpoints predict a variance too
