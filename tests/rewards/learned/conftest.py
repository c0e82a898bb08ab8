"""Tiny random models in the real layouts of transformers, written with save_pretrained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("PIL")

TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "patch_size": 8}
WIDE = 0.3
"""Standard deviation of random weights: large enough that scores depend on pixels well above rounding."""


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every matrix redrawn, so that nothing is near zero; norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * WIDE
    return network


def byte_tokenizer(special: list[str], end: str, **kwargs: Any) -> Any:
    """One token per byte, and special tokens after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    own.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    own.add_special_tokens(special)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=end, pad_token=end, additional_special_tokens=special, **kwargs
    )


def clip_tokenizer() -> Any:
    """CLIP's own tokenizer over single letters and the word "cat"."""
    letters = [chr(c) for c in range(33, 127)]
    words = letters + [c + "</w>" for c in letters] + ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[("c", "a"), ("ca", "t</w>")],
        model_max_length=12,
    )


def pil(name: str, **settings: Any) -> Any:
    """An image processor in its Pillow variant."""
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel of 12 tokens and 32×32 pixels."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer()
    text = {
        **TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 12,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {**VISION, "image_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    randomised(transformers.CLIPModel(config)).save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}
    pil("CLIP", size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageReward folder: BLIP's two encoders and the head."""
    folder = tmp_path_factory.mktemp("blip")
    tokenizer = byte_tokenizer(["[PAD]", "[CLS]"], "[PAD]")
    config = transformers.BlipConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 24,
            "max_position_embeddings": 40,
        },
        vision_config={**VISION, "image_size": 32},
    )
    vision = randomised(transformers.BlipVisionModel(config.vision_config), 1)
    text = randomised(transformers.BlipTextModel(config.text_config, add_pooling_layer=False), 2)
    head = randomised(nn.Sequential(nn.Linear(24, 8), nn.Dropout(), nn.Linear(8, 1)), 3)
    parts = {"vision_model.": vision, "text_encoder.": text, "mlp.layers.": head}
    tensors = {p + k: v.contiguous() for p, network in parts.items() for k, v in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}
    pil("CLIP", size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_SPECIAL = [
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
]
IDEFICS_SPECIAL += [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% if m['content'][0]['type'] != 'image' %} {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _qwen(folder: Path, version: str) -> None:
    tokenizer = byte_tokenizer(QWEN_SPECIAL, "<|endoftext|>", chat_template=QWEN_TEMPLATE)
    ids = SimpleNamespace(**{t.strip("<|>"): tokenizer.convert_tokens_to_ids(t) for t in QWEN_SPECIAL})
    text = {
        **TEXT, "num_key_value_heads": 1, "head_dim": 12, "vocab_size": len(tokenizer),
        "eos_token_id": ids.im_end, "bos_token_id": ids.endoftext, "pad_token_id": ids.endoftext,
        "max_position_embeddings": 512,
        "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [2, 2, 2]},
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 24}
    vision |= {"patch_size": 4}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]} if version == "Qwen2_5_VL" else {}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]} if version == "Qwen3VL" else {}
    marks = {
        "image_token_id": ids.image_pad, "video_token_id": ids.video_pad,
        "vision_start_token_id": ids.vision_start, "vision_end_token_id": ids.vision_end,
    }  # fmt: skip
    config = getattr(transformers, f"{version}Config")(text_config=text, vision_config=vision, **marks)
    network = getattr(transformers, f"{version}ForConditionalGeneration")(config)
    randomised(network).save_pretrained(folder)  # type: ignore[operator]
    size = {"shortest_edge": 64, "longest_edge": 4096}
    pil("Qwen2VL", patch_size=4, size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _idefics(folder: Path, version: str) -> None:
    tokenizer = byte_tokenizer(IDEFICS_SPECIAL, "<end_of_utterance>", chat_template=IDEFICS_TEMPLATE)
    text = {
        **TEXT, "num_key_value_heads": 1, "head_dim": 12, "vocab_size": len(tokenizer), "model_type": "llama",
        "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 1024,
    }  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = {**VISION, "image_size": 16, "patch_size": 4}
    config = getattr(transformers, f"{version}Config")(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=image
    )
    network = getattr(transformers, f"{version}ForConditionalGeneration")(config)
    randomised(network).save_pretrained(folder)  # type: ignore[operator]
    settings = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    pil(version, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": 4, "processor_class": f"{version}Processor"})
    )


def _paligemma(folder: Path, version: str) -> None:
    tokenizer = byte_tokenizer(["<eos>", "<bos>", "<image>"], "<eos>", bos_token="<bos>")
    size = {"height": 16, "width": 16}
    images = pil("Siglip", size=size)
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    text = {
        **TEXT, "num_key_value_heads": 1, "head_dim": 12, "vocab_size": len(tokenizer), "model_type": "gemma",
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        **VISION,
        "image_size": 16,
        "patch_size": 4,
        "model_type": "siglip_vision_model",
        "projection_dim": 24,
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=24, image_token_id=image
    )
    randomised(transformers.PaliGemmaForConditionalGeneration(config)).save_pretrained(folder)  # type: ignore[operator]
    processor.save_pretrained(folder)


WRITERS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "qwen2_5_vl": (_qwen, "Qwen2_5_VL"),
    "qwen3_vl": (_qwen, "Qwen3VL"),
    "idefics3": (_idefics, "Idefics3"),
    "smolvlm": (_idefics, "SmolVLM"),
    "paligemma": (_paligemma, "PaliGemma"),
}


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``vlm("paligemma")``: the folder of a tiny random vision-language model of that type."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            write, version = WRITERS[kind]
            made[kind] = tmp_path_factory.mktemp(kind)
            write(made[kind], version)
        return made[kind]

    return folder


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    """Smooth colourful images (2, 3, 24, 40) in [-0.9, 0.9], whose float64 values are no whole levels."""
    coarse = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    fine = nn.functional.interpolate(coarse, (24, 40), mode="bicubic")
    return 0.9 * fine.tanh()


@pytest.fixture
def check_gradient() -> Callable[..., None]:
    """``check_gradient(reward, x, generator)``: autograd against central differences, a random way.

    The error is measured against the gradient's norm, which is the directional derivative's typical size.
    Transformers' norms compute in float32 whatever the network's dtype, which leaves 1e-4 of noise.
    """

    def check(reward: Any, x: torch.Tensor, generator: torch.Generator, step: float = 1e-3) -> None:
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(x).sum(), x)
        with torch.no_grad():
            difference = (reward(x + step * direction) - reward(x - step * direction)).sum() / (2 * step)
        norm = float(gradient.norm())
        assert norm > 1e-2
        assert abs(float((gradient * direction).sum() - difference)) < 2e-3 * norm

    return check
