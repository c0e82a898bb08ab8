"""CLIP score, PickScore, HPSv2, the aesthetic score and ImageReward on tiny models in the real layouts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmtt.errors import UserError
from fmtt.rewards import build
from fmtt.rewards.learned.aesthetic import Aesthetic
from fmtt.rewards.learned.base import LearnedReward
from fmtt.rewards.learned.contrastive import ClipScore, HPSv2, PickScore
from fmtt.rewards.learned.image_reward import DEVIATION, MEAN, ImageReward, rename
from fmtt.rewards.learned.preprocess import as_array

transformers: Any = pytest.importorskip("transformers")

LONG = "a clock that reads 3:47"
"""More than the twelve tokens of the tiny CLIP."""


def whole_levels(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] whose values are exactly those of 8-bit pictures."""
    return (images * 127.5 + 127.5).round() / 127.5 - 1


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """An aesthetic head in the released layout: layers 0 and 2, with dropout between."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "layers.0.weight": (8, 16),
        "layers.0.bias": (8,),
        "layers.2.weight": (1, 8),
        "layers.2.bias": (1,),
    }
    save_file(
        {k: torch.randn(s, generator=generator) for k, s in shapes.items()}, tmp_path / "head.safetensors"
    )
    return tmp_path / "head.safetensors"


@pytest.fixture
def make(clip: Path, blip: Path, head: Path) -> Callable[..., LearnedReward]:
    """``make(name, **settings)``: any of the rewards."""

    def reward(name: str, **settings: Any) -> LearnedReward:
        if name == "clip":
            return ClipScore("a cat", str(clip), **settings)
        if name == "pickscore":
            return PickScore("a cat", str(clip), str(clip), **settings)
        if name == "hpsv2":
            return HPSv2("a cat", str(clip), **settings)
        if name == "aesthetic":
            return Aesthetic(str(head), str(clip), **settings)
        return ImageReward("a cat", str(blip), **settings)

    return reward


NAMES = ["clip", "pickscore", "hpsv2", "aesthetic", "image_reward"]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(
    make: Callable[..., LearnedReward],
    images: torch.Tensor,
    generator: torch.Generator,
    check_gradient: Callable[..., None],
    name: str,
) -> None:
    check_gradient(make(name, dtype="float64"), images, generator)


@pytest.mark.parametrize("name", ["clip", "hpsv2"])
def test_clip_scores_are_transformers_own(clip: Path, images: torch.Tensor, name: str) -> None:
    """Against the model's forward pass on what its processor makes of 8-bit images."""
    x = whole_levels(images)
    reward = {"clip": ClipScore, "hpsv2": HPSv2}[name](["a cat", "it"], str(clip), rounding=True)
    model = transformers.CLIPModel.from_pretrained(clip)
    tokens = transformers.AutoTokenizer.from_pretrained(clip)(
        ["a cat", "it"], padding=True, return_tensors="pt"
    )
    processor = transformers.AutoImageProcessor.from_pretrained(clip, backend="pil")
    pixels = processor([as_array((image + 1) / 2) for image in x], return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, **pixels).logits_per_image
        scores = reward(x.float(), {"prompt_index": torch.tensor([1, 0])})
    expected = torch.stack([logits[0, 1], logits[1, 0]]) / (model.logit_scale.exp() if name == "hpsv2" else 1)
    assert torch.allclose(scores, expected.detach(), atol=1e-4)


def test_the_aesthetic_score_is_the_head_on_normalised_features(
    clip: Path, head: Path, images: torch.Tensor
) -> None:
    x = whole_levels(images)
    model = transformers.CLIPModel.from_pretrained(clip)
    processor = transformers.AutoImageProcessor.from_pretrained(clip, backend="pil")
    pixels = processor([as_array((image + 1) / 2) for image in x], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**pixels).pooler_output
        features = features / features.norm(dim=-1, keepdim=True)
        t = load_file(head)
        hidden = features @ t["layers.0.weight"].T + t["layers.0.bias"]
        expected = (hidden @ t["layers.2.weight"].T + t["layers.2.bias"])[:, 0]
        scores = Aesthetic(str(head), str(clip), rounding=True)(x.float())
    assert torch.allclose(scores, expected, atol=1e-4)


def test_image_reward_depends_on_image_and_prompt(blip: Path, images: torch.Tensor) -> None:
    reward = ImageReward(["a cat", "a dog"], str(blip), dtype="float64")
    with torch.no_grad():
        first, second = (reward(images, {"prompt_index": torch.tensor(i)}) for i in ([0, 0], [1, 1]))
    assert (first - second).abs().min() > 1e-3
    assert (first[0] - first[1]).abs() > 1e-3


def test_image_reward_is_blips_own_encoders_and_the_head(blip: Path, images: torch.Tensor) -> None:
    """transformers' BlipForImageTextRetrieval holds the same two encoders: run its parts by hand."""
    x = whole_levels(images)
    config = transformers.BlipConfig.from_pretrained(blip)
    whole = transformers.BlipForImageTextRetrieval(config).eval()
    tensors = load_file(blip / "model.safetensors")
    loaded = whole.load_state_dict(tensors, strict=False)
    assert not [k for k in loaded.missing_keys if k.startswith(("vision_model", "text_encoder"))]
    processor = transformers.AutoImageProcessor.from_pretrained(blip, backend="pil")
    pixels = processor([as_array((image + 1) / 2) for image in x], return_tensors="pt").pixel_values
    tokenizer = transformers.AutoTokenizer.from_pretrained(blip)
    tokens = tokenizer(["a cat"] * 2, padding="max_length", max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = whole.vision_model(pixels).last_hidden_state
        text = whole.text_encoder(
            tokens.input_ids, tokens.attention_mask, encoder_hidden_states=seen, is_decoder=False
        )
        hidden = text[0][:, 0] @ tensors["mlp.layers.0.weight"].T + tensors["mlp.layers.0.bias"]
        raw = (hidden @ tensors["mlp.layers.2.weight"].T + tensors["mlp.layers.2.bias"])[:, 0]
        scores = ImageReward("a cat", str(blip), rounding=True)(x.float())
    assert torch.allclose(scores, (raw - MEAN) / DEVIATION, atol=1e-4)


def test_the_authors_names_become_transformers_names(blip: Path) -> None:
    """Every tensor of the folder is found again from its name in BLIP's layout, and nothing else is kept."""
    tensors = load_file(blip / "model.safetensors")
    original = {
        "vision_model.embeddings.class_embedding": "blip.visual_encoder.cls_token",
        "vision_model.embeddings.position_embedding": "blip.visual_encoder.pos_embed",
        "vision_model.embeddings.patch_embedding.": "blip.visual_encoder.patch_embed.proj.",
        "vision_model.post_layernorm.": "blip.visual_encoder.norm.",
        "vision_model.encoder.layers.": "blip.visual_encoder.blocks.",
        ".self_attn.projection.": ".attn.proj.",
        ".self_attn.": ".attn.",
        ".layer_norm": ".norm",
        "text_encoder.": "blip.text_encoder.",
    }
    theirs = {}
    for name, value in tensors.items():
        for new, old in original.items():
            name = name.replace(new, old) if new.startswith(("vision", "text")) or "blocks" in name else name
        theirs[name] = value
    extra = {
        "blip.text_encoder.embeddings.position_ids": torch.zeros(1),
        "blip.itm_head.weight": torch.zeros(1),
    }
    again = rename(theirs | extra)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_limit_and_the_number_of_channels(
    make: Callable[..., LearnedReward], images: torch.Tensor, name: str
) -> None:
    x = torch.cat([images, images.flip(-1), images[:1].flip(-2)])
    with torch.no_grad():
        together, apart = (make(name, dtype="float64", max_batch=n)(x) for n in (8, 2))
        assert torch.allclose(together, apart, atol=1e-6)
        reward = make(name, dtype="float64")
        grey = x[:, :1]
        assert torch.allclose(reward(grey), reward(grey.expand(-1, 3, -1, -1)))
    assert make(name, max_batch=2).description.max_batch == 2
    with pytest.raises(UserError, match="4; decode them first"):
        reward(torch.zeros(1, 4, 8, 8))


def test_a_specification_builds_them(clip: Path, head: Path, images: torch.Tensor) -> None:
    reward = build(f'0.5*clip:prompt="a cat, it",model={clip} + aesthetic:head={head},model={clip}')
    with torch.no_grad():
        assert reward(images, None).isfinite().all()
    with pytest.raises(UserError, match="needs prompt=..."):
        build(f"clip:model={clip}")


def test_half_precision_stays_near(clip: Path, images: torch.Tensor) -> None:
    with torch.no_grad():
        full = HPSv2("a cat", str(clip))(images.float())
        half = HPSv2("a cat", str(clip), dtype="bfloat16")(images.bfloat16())
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.05


def test_a_long_prompt_is_reported(clip: Path, blip: Path) -> None:
    with pytest.warns(UserWarning, match="ClipScore reads 12 tokens of a prompt: 1 of 2 prompts are cut"):
        reward = ClipScore(["a cat", LONG], str(clip))
    (cut,) = reward.report["truncated_prompts"]
    assert cut["prompt"] == LONG and cut["limit"] == 12 and cut["tokens"] > 12
    with pytest.warns(UserWarning, match="ImageReward reads 35 tokens"):
        ImageReward("a" * 36, str(blip))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ClipScore("a cat", str(clip)).report == {"truncated_prompts": []}


def test_a_sample_needs_to_know_its_prompt(clip: Path, images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    reward = ClipScore(f"@{tmp_path / 'prompts.txt'}", str(clip))
    with pytest.raises(UserError, match="2 prompts: pass cond\\['prompt_index'\\]"):
        reward(images)
    with pytest.raises(UserError, match="2 numbers from 0 to 1"):
        reward(images, {"prompt_index": torch.tensor([0, 2])})
    with pytest.raises(UserError, match="prompt is empty"):
        ClipScore(" ", str(clip))
