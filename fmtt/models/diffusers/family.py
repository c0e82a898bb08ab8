"""What the families share: a diffusers transformer as the network of a flow map over latents.

diffusers' flow models have noise at sigma = 1 and predict v_sigma = noise - data. Here t = 1 - sigma and
u = -v, and the classes in this package are the only place that knows. Conditions are batch-first tensors, by
the names that diffusers' pipelines give them: ``prompt_embeds`` (B, T, width), ``pooled_prompt_embeds``
(B, width), ``prompt_attention_mask`` (B, T), each with a ``negative_`` one where guidance needs it, and
``guidance_scale`` (B,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fmtt.errors import UserError
from fmtt.models.diffusers import second_time as second_times
from fmtt.models.diffusers.adapters import adapters_off, checkpointing_off, is_adapter
from fmtt.models.diffusers.layer_norm import make_differentiable
from fmtt.models.embeddings import GuidanceEmbedding
from fmtt.tensor import expand_like
from fmtt.types import Cond

SCALE, NEGATIVE = "guidance_scale", "negative_"
FEW_STEP = (
    "this few-step model knows jumps to t = 1 only: use it as lookahead_map beside a model that has a "
    "velocity, or sample with steps=1"
)


class Names(NamedTuple):
    """What diffusers calls the parts of a family, and what of it is trained.

    Attributes:
        family: as users name it.
        pipeline, transformer, vae: class names in diffusers.
        embedding: the submodule of the transformer that embeds its time, called with what
            :meth:`LatentTransformer.embedded` says first, and ending in a layer ``linear_2``.
        conditions: that every call needs.
        lora: suffixes of the linear layers that adapters are put on.
        output: the transformer's last linear layer.
        scheduler: of a pipeline's folder that holds a flow map. FlowMapEulerDiscreteScheduler, except in
            families whose pipeline hands its scheduler a shift that depends on the picture's size, which that
            class does not take. Both classes step from one noise level to the next.
    """

    family: str
    pipeline: str
    transformer: str
    vae: str
    embedding: str
    conditions: tuple[str, ...]
    lora: tuple[str, ...]
    output: str = "proj_out"
    scheduler: str = "FlowMapEulerDiscreteScheduler"


class LatentTransformer(nn.Module, ABC):
    """Network ``(x (B, C, H, W), s (B,), t (B,), cond) -> u_{s,t}(x) (B, C, H, W)``.

    Args:
        transformer: of the class that ``names.transformer`` says; shared, not copied.
        second_time: "none", "zero_init" or "averaged" (see :mod:`fmtt.models.diffusers.second_time`).
        own_guidance: learn to depend on ``cond["guidance_scale"]`` in one pass, by an embedding that is zero
            until trained, instead of two passes; for families without a guidance embedding.
        guidance: the scale where ``cond`` gives none, for families with a guidance embedding.
        few_step: the model was distilled to jump to clean data; it has no velocity, and only t = 1 is
            allowed.
        adapters: whether LoRA adapters in the transformer belong to this network. Without, they are off
            during its calls, so that a teacher shares the transformer with its student. With, its
            ``state_dict`` leaves the transformer's own weights out, which are frozen and elsewhere.
    """

    names: ClassVar[Names]
    guided: ClassVar[bool] = True
    """Whether guidance means two passes, with and without the prompt."""

    def __init__(
        self,
        transformer: nn.Module,
        *,
        second_time: str = second_times.NONE,
        own_guidance: bool = False,
        guidance: float | None = None,
        few_step: bool = False,
        adapters: bool = False,
    ) -> None:
        super().__init__()
        found = type(transformer).__name__
        if found != self.names.transformer:
            raise UserError(f"family {self.names.family} needs a {self.names.transformer}, got a {found}")
        if own_guidance and not self.guided:
            raise UserError(f"own_guidance: family {self.names.family} has a guidance embedding already")
        make_differentiable(transformer)
        self.transformer: Any = transformer
        embedding = transformer.get_submodule(self.names.embedding)
        ends = (part for name, part in embedding.named_modules() if name.endswith("linear_2"))
        dim = next(ends).get_parameter("bias").shape[0]
        self.second_time, self.second_time_name = second_times.build(second_time, embedding, dim), second_time
        self.own_guidance = GuidanceEmbedding(dim) if own_guidance else None
        self.guidance, self.few_step, self.adapters = guidance, few_step, adapters
        device = transformer.get_submodule(self.names.output).get_parameter("weight").device
        for part in (self.second_time, self.own_guidance):
            if part is not None:
                part.to(device)
        self.register_state_dict_post_hook(_leave_base_out)
        self.register_load_state_dict_post_hook(_base_is_there)

    @classmethod
    def embeds_guidance(cls, transformer: nn.Module) -> bool:
        """Whether the transformer takes the guidance scale as an input."""
        return False

    @classmethod
    def latent_channels(cls, config: Any) -> int:
        """C, from the transformer's config."""
        return config["in_channels"]

    @classmethod
    def patch(cls, config: Any) -> int:
        """Side of the square of latents that becomes a token."""
        return config["patch_size"]

    @classmethod
    def widths(cls, config: Any) -> dict[str, int]:
        """Length of the last axis of embedded prompts, by condition, from the transformer's config."""
        return {
            "prompt_embeds": config["joint_attention_dim"],
            "pooled_prompt_embeds": config["pooled_projection_dim"],
        }

    @classmethod
    @abstractmethod
    def encode(
        cls, pipeline: Any, texts: list[str], negative: str | None, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Conditions of prompts by the pipeline's text encoders, and of the ``negative`` one where given."""

    @property
    def two_passes(self) -> bool:
        """Whether a guidance scale costs a second pass, with the negative prompt. FLUX.1 without a guidance
        embedding (schnell) knows no guidance at all, and disregards the scale as diffusers does."""
        return self.guided and self.own_guidance is None

    @property
    def time_scale(self) -> float:
        """What the transformer's embedding calls sigma = 1."""
        return 1000.0

    def embedded(self, t: Tensor) -> Tensor:
        """What the embedding is called with at the time t (B,)."""
        return self.time_scale * (1 - t)

    def hold_negative(self, cond: Cond) -> None:
        """Keep one row of ``negative_`` conditions, for calls with a guidance scale whose cond has none.

        Raises:
            UserError: when one is missing.
        """
        for name in self.names.conditions:
            if NEGATIVE + name not in cond:
                raise UserError(f"the negative prompt's conditions lack {NEGATIVE + name}: encode it again")
            self.register_buffer(NEGATIVE + name, cond[NEGATIVE + name][:1].clone(), persistent=False)

    @property
    def held_negative(self) -> dict[str, Tensor]:
        """What :meth:`hold_negative` was given, one row each."""
        return dict(self.named_buffers(recurse=False))

    @abstractmethod
    def predict(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """v_sigma(x), (B, C, H, W): the transformer's call as diffusers' own pipeline makes it."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if self.few_step and bool((t < 1).any()):
            raise UserError(FEW_STEP)
        own = self._checked(cond, x)
        if self.adapters:
            return self._guided(x, s, t, own)
        with adapters_off(self.transformer):
            return self._guided(x, s, t, own)

    def _guided(self, x: Tensor, s: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """One pass, or u(negative) + w (u - u(negative)) where ``cond`` has a scale for a plain model."""
        positive = {name: value for name, value in cond.items() if not name.startswith(NEGATIVE)}
        if not self.two_passes or SCALE not in cond:
            return self._average_velocity(x, s, t, positive)
        negative = {name: cond[NEGATIVE + name] for name in positive if name != SCALE}
        both = {name: torch.cat([value, positive[name]]) for name, value in negative.items()}
        out = self._average_velocity(torch.cat([x, x]), torch.cat([s, s]), torch.cat([t, t]), both)
        weak, full = out.chunk(2)
        return weak + expand_like(cond[SCALE].to(out), x) * (full - weak)

    def _average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        first, second = self.embedded(s), self.embedded(t)

        def exact_time(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # Some transformers round the timestep to their weights' dtype on the way to this embedding.
            return (first, *args[1:])

        def both_times(module: nn.Module, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor:
            if self.second_time is not None:
                out = self.second_time(out, t, second, args[1:], kwargs)
            if self.own_guidance is not None:
                out = out + self.own_guidance(s, cond).to(out.dtype)
            return out

        embedding = self.transformer.get_submodule(self.names.embedding)
        handles = [
            embedding.register_forward_pre_hook(exact_time),
            embedding.register_forward_hook(both_times, with_kwargs=True),
        ]
        # A pass that carries a tangent cannot be repeated in the reverse pass, where the tangent is gone.
        moving = any(forward_ad.unpack_dual(v).tangent is not None for v in (x, s, t))
        try:
            with checkpointing_off(self.transformer) if moving else nullcontext():
                return -self.predict(x.to(self.dtype), 1 - s, cond)
        finally:
            for handle in handles:
                handle.remove()

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights; adapters may be wider."""
        return self.transformer.get_submodule(self.names.output).weight.dtype

    def _checked(self, cond: Cond | None, x: Tensor) -> dict[str, Tensor]:
        given = dict(cond or {})
        names = self.names.conditions
        missing = [name for name in names if name not in given]
        if missing:
            raise UserError(
                f"family {self.names.family} needs cond[{missing[0]!r}]: use encode_prompts, or for training "
                "data `python -m data encode`"
            )
        wanted = {name: given[name] for name in names}
        widths = self.widths(self.transformer.config)
        for name, value in wanted.items():
            if value.shape[0] != x.shape[0]:
                raise UserError(f"cond[{name!r}] has {value.shape[0]} rows for {x.shape[0]} samples")
            if value.shape[-1] != widths.get(name, value.shape[-1]):
                raise UserError(
                    f"cond[{name!r}] has width {value.shape[-1]}, this {self.names.family} model needs "
                    f"{widths[name]}: encode prompts with its own pipeline"
                )
        if SCALE in given:
            wanted[SCALE] = given[SCALE]
        elif self.guidance is not None:
            wanted[SCALE] = x.new_full((x.shape[0],), self.guidance, dtype=torch.float32)
        elif self.embeds_guidance(self.transformer):
            raise UserError(f"this {self.names.family} model is conditioned on cond['{SCALE}'] (B,): pass it")
        if SCALE in wanted and self.two_passes:
            held = self.held_negative
            given = {name: value.expand(len(x), *value.shape[1:]) for name, value in held.items()} | given
            lacking = [NEGATIVE + name for name in names if NEGATIVE + name not in given]
            if lacking:
                raise UserError(f"cond['{SCALE}'] needs cond[{lacking[0]!r}] too: use encode_prompts")
            wanted |= {NEGATIVE + name: given[NEGATIVE + name] for name in names}
        return {
            name: value.to(self.dtype) if value.is_floating_point() and name != SCALE else value
            for name, value in wanted.items()
        }


def _leave_base_out(
    network: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    assert isinstance(network, LatentTransformer)
    base = prefix + "transformer."
    if network.adapters:
        for name in [key for key in state_dict if key.startswith(base) and not is_adapter(key)]:
            del state_dict[name]


def _base_is_there(network: nn.Module, incompatible: Any) -> None:
    """Whoever loads a state without the base's weights need not be told that they are missing."""
    assert isinstance(network, LatentTransformer)
    if network.adapters:
        missing = incompatible.missing_keys
        missing[:] = [key for key in missing if "transformer." not in key or is_adapter(key)]
