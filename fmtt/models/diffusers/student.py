"""Students of a diffusers teacher: LoRA adapters on the teacher's own weights, or a copy trained in full."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers.adapters import adapter_layers, is_adapter
from fmtt.models.diffusers.family import LatentTransformer

ADAPTER = "default"


class Lora(NamedTuple):
    """Low-rank adapters.

    Attributes:
        rank: of each adapter.
        alpha: the adapter's output is multiplied by alpha / rank; alpha = rank if 0.
        targets: suffixes of the linear layers that get one; the family's usual ones if empty.
    """

    rank: int = 16
    alpha: float = 0.0
    targets: Sequence[str] = ()


def network_of(flow_map: NeuralFlowMap) -> LatentTransformer:
    """The transformer's wrapper.

    Raises:
        UserError: for a flow map over another network.
    """
    if not isinstance(flow_map.network, LatentTransformer):
        raise UserError(f"this needs a diffusers model, got a {type(flow_map.network).__name__}")
    return flow_map.network


def add_lora(transformer: nn.Module, lora: Lora, usual: Sequence[str]) -> None:
    """Put adapters, in float32 and without effect until trained, on ``transformer``; all else is frozen.

    Raises:
        UserError: when peft is missing, no layer has such a name, or there are adapters already.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs the package peft: pip install 'fmtt[diffusers]'") from error
    if adapter_layers(transformer):
        raise UserError("this transformer has adapters already: load the teacher again for another student")
    if lora.rank < 1:
        raise UserError(f"student.lora.rank must be at least 1, got {lora.rank}")
    config = LoraConfig(
        r=lora.rank, lora_alpha=cast(int, lora.alpha or lora.rank), target_modules=list(lora.targets or usual)
    )
    try:
        inject_adapter_in_model(config, transformer, ADAPTER)
    except ValueError as error:
        raise UserError(f"lora.targets: {str(error).splitlines()[0]}") from error
    for name, parameter in transformer.named_parameters():
        adapter = is_adapter(name)
        parameter.requires_grad_(adapter)
        if adapter:
            parameter.data = parameter.data.float()


def student_of(
    teacher: NeuralFlowMap,
    *,
    second_time: str = "zero_init",
    lora: Lora | None = None,
    own_guidance: bool = False,
) -> NeuralFlowMap:
    """A student to be trained: before the first step its teacher at s = t and, with zero_init, everywhere.

    With ``lora`` it shares the teacher's transformer, whose weights are frozen and exist once: the teacher
    stays usable as it is. Without, it gets a copy, trained in full.

    Raises:
        UserError: for a few-step teacher, which has no velocity to learn from, or arguments that do not fit.
    """
    base = network_of(teacher)
    if base.few_step:
        raise UserError(
            "a few-step model has no velocity and cannot be a teacher: use the model it came from"
        )
    transformer = base.transformer
    if lora is None:
        if adapter_layers(transformer):
            raise UserError("this transformer has adapters: load the teacher again to train it in full")
        transformer = copy.deepcopy(transformer).requires_grad_(True)
    network = type(base)(
        transformer,
        second_time=second_time,
        own_guidance=own_guidance,
        guidance=base.guidance,
        adapters=lora is not None,
    )
    if lora is not None:
        add_lora(transformer, lora, base.names.lora)
    if base.held_negative:
        network.hold_negative(base.held_negative)
    return NeuralFlowMap(network, teacher.interpolant, teacher.data_shape)


def teacher_of(student: NeuralFlowMap) -> NeuralFlowMap:
    """The teacher inside a LoRA student: the same weights, with adapters and the second time left out.

    Raises:
        UserError: for a student trained in full, which has forgotten its teacher.
    """
    network = network_of(student)
    if not network.adapters:
        raise UserError("a student trained in full holds no teacher: load the teacher from its own folder")
    base = type(network)(network.transformer, guidance=network.guidance)
    if network.held_negative:
        base.hold_negative(network.held_negative)
    return NeuralFlowMap(base, student.interpolant, student.data_shape)


def trained_parameters(student: NeuralFlowMap) -> dict[str, Tensor]:
    """What training changes, by name: of a LoRA student the adapters and the second time's embedding."""
    return {name: p for name, p in student.named_parameters() if p.requires_grad}


@torch.no_grad()
def merge(student: NeuralFlowMap) -> None:
    """Fold the adapters of a LoRA student into its transformer, in place; its teacher is gone then."""
    network = network_of(student)
    layers = set(adapter_layers(network.transformer))
    for name, module in list(network.transformer.named_modules()):
        if module in layers:
            module.merge(safe_merge=True)
            parent, _, leaf = name.rpartition(".")
            setattr(network.transformer.get_submodule(parent), leaf, module.get_base_layer())
    network.adapters = False
