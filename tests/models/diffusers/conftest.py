"""Tiny random pipelines of the real classes, written with save_pretrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")

WIDTH = 16
"""Of text embeddings."""
LETTERS = [chr(c) for c in range(97, 123)]


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def randomised(network: nn.Module, scale: float = 0.2) -> Any:
    """Every matrix and bias redrawn, zero-initialised modulations too, so that every input matters."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in network.named_parameters():
        if weight.ndim > 1 or name.endswith("bias"):
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    return network.eval()


def clip(projection: bool = False) -> tuple[Any, Any]:
    words = LETTERS + [letter + "</w>" for letter in LETTERS] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, randomised(kind(config))


def word_tokenizer(**special: str) -> Any:
    """One token per letter, after a first one where the model has such; system prompts are left out."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = [*dict.fromkeys([*special.values(), "<unk>"]), *LETTERS, " "]
    own = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    own.normalizer = normalizers.Replace(Regex(".*<Prompt Start> "), "")  # type: ignore[assignment]
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    if (first := special.get("bos_token")) is not None:
        own.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{first} $A", special_tokens=[(first, tokens.index(first))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", **special)


def t5(width: int = WIDTH) -> tuple[Any, Any]:
    config = transformers.T5Config(
        vocab_size=40, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return word_tokenizer(pad_token="<pad>", eos_token="</s>"), randomised(
        transformers.T5EncoderModel(config)
    )


def gemma() -> tuple[Any, Any]:
    config = transformers.Gemma2Config(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    tokenizer = word_tokenizer(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    return tokenizer, randomised(transformers.Gemma2Model(config))


def kl_autoencoder() -> Any:
    return randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=16,
            scaling_factor=0.5,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def flux(guidance: bool = True) -> Any:
    tokenizer, text_encoder = clip()
    tokenizer_2, text_encoder_2 = t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance),
        vae=kl_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=randomised(transformer),
    )


def sd3() -> Any:
    tokenizer, text_encoder = clip(projection=True)
    tokenizer_3, text_encoder_3 = t5(2 * WIDTH)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=clip(projection=True)[1],
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
        transformer=randomised(transformer),
    )


def sana(sprint: bool = False) -> Any:
    tokenizer, text_encoder = gemma()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=sprint,
    )
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )
    pipeline_class = diffusers.SanaSprintPipeline if sprint else diffusers.SanaPipeline
    return pipeline_class(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=randomised(autoencoder),
        transformer=randomised(transformer),
        scheduler=(
            diffusers.SCMScheduler() if sprint else diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        ),
    )


def lumina2() -> Any:
    tokenizer, text_encoder = gemma()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=randomised(transformer, 0.3),  # its time is not scaled: else it would hardly matter
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=kl_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )


def lcm(name: str) -> Any:
    """A model of a family as distilled to jump to clean data, which its scheduler tells."""
    pipeline = MAKERS[name]()
    pipeline.register_modules(scheduler=diffusers.FlowMatchLCMScheduler())
    return pipeline


def without_t5() -> Any:
    pipeline = sd3()
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    return pipeline


MAKERS: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "schnell": lambda: flux(guidance=False),
    "sd3": sd3,
    "sana": sana,
    "lumina2": lumina2,
    "sana_sprint": lambda: sana(sprint=True),
    **{f"{name}_lcm": lambda name=name: lcm(name) for name in ("flux", "sd3", "sana", "lumina2")},
    "sd3_without_t5": without_t5,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny pipeline by name, written on first use."""
    written: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in written:
            path: Path = tmp_path_factory.mktemp(name) / "pipeline"
            MAKERS[name]().save_pretrained(path)
            written[name] = str(path)
        return written[name]

    return of


def conditions(name: str, rows: int, *, guided: bool = True) -> dict[str, Tensor]:
    """Random conditions of that family for so many samples."""
    family, embedded = name.removesuffix("_lcm"), name in ("flux", "flux_lcm", "schnell", "sana_sprint")
    width = 2 * WIDTH if family == "sd3" else WIDTH
    cond = {"prompt_embeds": torch.randn(rows, 6, width)}
    if family in ("sana", "sana_sprint", "lumina2"):
        cond["prompt_attention_mask"] = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
        cond["prompt_attention_mask"] = cond["prompt_attention_mask"].repeat(rows, 1)[:rows]
    else:
        cond["pooled_prompt_embeds"] = torch.randn(rows, width)
    if guided and not embedded:
        cond |= {f"negative_{key}": value.flip(0) * 1 for key, value in cond.items()}
    if guided and name != "schnell":
        cond["guidance_scale"] = torch.linspace(2.0, 4.0, rows)
    return cond
