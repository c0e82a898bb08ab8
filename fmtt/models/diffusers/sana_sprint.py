"""SANA-Sprint: jumps to clean data over the latents of SANA's autoencoder, guided by an embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.models.diffusers import masked_prompt
from fmtt.models.diffusers.family import SCALE, LatentTransformer, Names
from fmtt.models.diffusers.second_time import NONE

USUAL_GUIDANCE = 4.5
"""The scale where neither the conditions nor the user give one: SanaSprintPipeline's own."""


class SanaSprint(LatentTransformer):
    """The transformer F of SANA-Sprint (arXiv 2503.09641), which knows X_{s,1} and nothing else.

    Its own path is trigonometric, z = sigma_data (cos(a) x_1 + sin(a) x_0). A point of the linear path with
    sigma = sin(a) / (cos(a) + sin(a)) has the same ratio of noise to data, and is z / sigma_data times
    r = sqrt(sigma^2 + (1 - sigma)^2): just what the transformer takes, with sigma for its time. Of its output
    the pipeline makes the trigonometric velocity v = sigma_data ((1 - 2 sigma) x + r^2 F) / r, and of that
    SCMScheduler makes the clean latents cos(a) z - sin(a) v, which are sigma_data (x - sigma F): so F is the
    mean of v_sigma from here to clean data, and sigma_data cancels. The latents are those of SANA.
    """

    names = Names(
        family="sana_sprint",
        pipeline="SanaSprintPipeline",
        transformer="SanaTransformer2DModel",
        vae="AutoencoderDC",
        embedding="time_embed",
        conditions=(masked_prompt.TOKENS, masked_prompt.MASK),
        lora=(),
    )

    guided = False

    def __init__(self, transformer: Any, **options: Any) -> None:
        if options.get("second_time", NONE) != NONE:
            raise UserError("second_time: SANA-Sprint always goes to t = 1; leave it out")
        own = {"guidance": options.pop("guidance", None), "few_step": True}
        own["guidance"] = USUAL_GUIDANCE if own["guidance"] is None else own["guidance"]
        super().__init__(transformer, **{**options, **own})

    @classmethod
    def embeds_guidance(cls, transformer: nn.Module) -> bool:
        return True

    @classmethod
    def widths(cls, config: Any) -> dict[str, int]:
        return {masked_prompt.TOKENS: config["caption_channels"]}

    @classmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        text, mask = pipeline.encode_prompt(prompt=texts, **options)
        return {masked_prompt.TOKENS: text, masked_prompt.MASK: mask}

    @property
    def time_scale(self) -> float:
        return 1.0

    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.transformer(
            x,
            encoder_hidden_states=cond[masked_prompt.TOKENS],
            encoder_attention_mask=cond[masked_prompt.MASK],
            guidance=cond[SCALE].float() * self.transformer.config.guidance_embeds_scale,
            timestep=sigma,
            return_dict=False,
        )[0]
