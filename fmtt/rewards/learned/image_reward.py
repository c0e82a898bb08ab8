"""ImageReward: BLIP's image encoder, its text encoder with cross-attention, and a linear head.

The authors' checkpoint is one pickle in BLIP's own layout. Its networks are those of transformers'
BlipVisionModel and BlipTextModel, so it is used from a folder that holds
    config.json             a BlipConfig (ViT-L/16 at 224 pixels, BERT-base with encoder_hidden_size 1024)
    model.safetensors       vision_model.*, text_encoder.*, mlp.layers.* (see :func:`rename`)
    preprocessor_config.json   CLIP's: shortest edge 224, central crop, CLIP's mean and deviation
    the tokenizer of bert-base-uncased
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.png import DEFAULT_RANGE
from fmtt.rewards.description import Description
from fmtt.rewards.learned import head as heads
from fmtt.rewards.learned import loading
from fmtt.rewards.learned.base import LearnedReward
from fmtt.rewards.learned.preprocess import ResizeAndCrop
from fmtt.rewards.learned.prompts import Prompts, encode

MAX_TOKENS = 35
"""What the authors' code reads of a prompt."""
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the authors' data; the score is standardised by them."""

_RENAMES = (
    (r"^blip\.", ""),
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
)


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the authors' checkpoint under the names that :class:`ImageReward` reads.

    What only BLIP's pretraining needs (projections, matching head, decoder, momentum copies) is left out.
    """
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for pattern, target in _RENAMES:
            name = re.sub(pattern, target, name)
        kept = name.startswith(("vision_model.", "text_encoder.", "mlp.layers."))
        if kept and not name.endswith("position_ids"):
            out[name] = value.contiguous()
    return out


class ImageReward(LearnedReward):
    """ImageReward: standardised human preference of an image for its prompt, about -2.5 to 2.

    Xu et al. 2023 (arXiv:2304.05977). Prompts are read up to 35 tokens, as in the authors' code.

    Args:
        prompt: one prompt, several, or ``@FILE`` with one per line; with several, ``cond["prompt_index"]``
            says which belongs to a sample.
        model: the converted folder described above; there is none on the hub that is known to us.
        value_range, dtype, device, max_batch, rounding: see :class:`LearnedReward`.

    Raises:
        UserError: when a package, a file or a weight is missing.
    """

    description = Description(
        "ImageReward, human preference of image for prompt", True, space="pixels", uses_prompt=True
    )

    def __init__(
        self,
        prompt: str | Sequence[str],
        model: str,
        value_range: tuple[float, float] = DEFAULT_RANGE,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 16,
        rounding: bool = False,
    ) -> None:
        prompts = Prompts(prompt)
        super().__init__(prompts, value_range, dtype, device, max_batch, rounding)
        if not Path(model).expanduser().is_dir():
            raise UserError(
                f"model {model} is not a folder: ImageReward is loaded from a converted folder, "
                "see fmtt.rewards.learned.image_reward"
            )
        tensors = loading.tensors(Path(model) / "model.safetensors")
        config = loading.load(model, lambda t: t.BlipConfig.from_pretrained(model))
        self.vision = loading.load(model, lambda t: t.BlipVisionModel(config.vision_config))
        self.encoder = loading.load(
            model, lambda t: t.BlipTextModel(config.text_config, add_pooling_layer=False)
        )
        _fill(self.vision, tensors, "vision_model.", model)
        _fill(self.encoder, tensors, "text_encoder.", model)
        mlp = {name.removeprefix("mlp."): value for name, value in tensors.items() if name.startswith("mlp.")}
        self.head = heads.build(mlp, config.text_config.hidden_size, model)
        for part in (self.vision, self.encoder):
            loading.to_device(part.eval().requires_grad_(False).to(self.dtype), device)
        self.head.to(device, heads.precision(self.dtype))
        self.processor = loading.image_processor(model, "main")
        self.preprocess = ResizeAndCrop(self.processor, rounding=rounding)
        tokens, self.truncated = encode(
            loading.tokenizer(model, "main"), prompts.texts, MAX_TOKENS, type(self).__name__
        )
        self.ids, self.mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)  # (P, 35)

    def _score(self, rgb: Tensor, index: Tensor) -> Tensor:
        self._checked_once((rgb.shape[-2], rgb.shape[-1]), self.processor)
        pixels = self.preprocess(rgb).to(self.dtype)
        image = self.vision(pixel_values=pixels).last_hidden_state  # (b, patches + 1, width)
        rows = index.to(self.ids.device)
        text = self.encoder(
            input_ids=self.ids[rows],
            attention_mask=self.mask[rows],
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
            is_decoder=False,
        ).last_hidden_state
        raw = self.head(text[:, 0].to(heads.precision(self.dtype))).squeeze(-1)
        return (raw - MEAN) / DEVIATION


def _fill(network: torch.nn.Module, tensors: dict[str, Tensor], prefix: str, where: str) -> None:
    """Load the tensors under ``prefix`` into a network, all of them and no others.

    Raises:
        UserError: when names or shapes do not fit.
    """
    part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    own = network.state_dict()
    wrong = sorted(own.keys() ^ part.keys()) or [k for k in own if own[k].shape != part[k].shape]
    if wrong:
        raise UserError(
            f"{where}/model.safetensors does not fit its config.json: {prefix}{wrong[0]} is missing, unknown "
            "or of another shape; convert the checkpoint with fmtt.rewards.learned.image_reward.rename"
        )
    network.load_state_dict(part)
