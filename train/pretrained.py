"""Distilling a text-to-image pipeline: its transformer is the teacher, and a LoRA student shares it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.shared import read_shared
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers.pretrained import FAMILIES, load_flow_map
from fmtt.models.diffusers.student import Lora, network_of, student_of, teacher_of
from train.config import Config
from train.config_objective import GuidanceConfig
from train.config_pretrained import LoraConfig, PretrainedConfig
from train.teacher import OWN, Guidance


class Pair(NamedTuple):
    """A student, the teacher that it learns from, what an export says of it, and how w is drawn."""

    student: NeuralFlowMap
    teacher: NeuralFlowMap
    export: dict[str, Any]
    guidance: Guidance


def build_pair(config: Config, stage: str, data_shape: tuple[int, ...]) -> Pair:
    """Teacher and student of a run whose ``teacher`` is a mapping, for latents of shape ``data_shape``.

    Raises:
        UserError: for a pipeline that is missing or of another family, or settings that do not go together.
    """
    given, c = config.teacher, config.student
    assert isinstance(given, PretrainedConfig)
    if stage == "pretrain":
        raise UserError("teacher.pretrained is for distill: pretrain has no teacher")
    if c.init != "teacher" or c.interpolant != "linear" or c.prediction != "velocity" or c.args:
        raise UserError(
            "student: init, args, interpolant and prediction are the pipeline's own with teacher.pretrained; "
            "leave them out"
        )
    if config.guidance != GuidanceConfig():
        raise UserError("guidance: a pipeline is guided by teacher.guidance; leave this section out")
    low, high = _range(given.guidance)
    about: dict[str, Any] = {
        "pretrained": given.pretrained,
        "dtype": given.dtype,
        "guidance": None if not given.guidance else (low + high) / 2,
        "second_time": c.second_time,
        "own_guidance": c.own_guidance,
        "lora": None if c.lora is None else vars(c.lora).copy(),
    }
    teacher = load_teacher(about, data_shape, given.family)
    network = network_of(teacher)
    if network.embeds_guidance(network.transformer) and not given.guidance:
        raise UserError(
            f"teacher.guidance: this {network.names.family} model is conditioned on a guidance scale; "
            "set it, such as 3.5"
        )
    if network.guided and given.guidance:
        network.hold_negative(negative_of(_sources(config)))
    student = build_student(teacher, about)
    if c.checkpointing:
        network_of(student).transformer.enable_gradient_checkpointing()
    if c.lora is not None:
        teacher = teacher_of(student)  # the same weights with the adapters off
    export = {"kind": "flow_map", "network": network.names.family, "network_args": about}
    export |= {"interpolant": "linear", "prediction": "velocity", "data_shape": list(data_shape)}
    drawn = OWN if low < high else ""
    return Pair(student, teacher.eval(), export, Guidance(drawn, scale=(low, high)))


def load_teacher(about: Mapping[str, Any], data_shape: Sequence[int], family: str = "") -> NeuralFlowMap:
    """The pipeline's transformer as a frozen velocity, by the entries of an export's ``network_args``."""
    return load_flow_map(
        about["pretrained"],
        family=family or None,
        latents=data_shape,
        guidance=about["guidance"],
        dtype=getattr(torch, about["dtype"]),
    )


def build_student(teacher: NeuralFlowMap, about: Mapping[str, Any]) -> NeuralFlowMap:
    """The untrained student of ``network_args``."""
    names = ("second_time", "own_guidance")
    return student_of(teacher, lora=lora_of(about), **{name: about[name] for name in names})


def lora_of(about: Mapping[str, Any]) -> Lora | None:
    """The adapters of ``network_args``."""
    return None if about["lora"] is None else Lora(**vars(LoraConfig(**about["lora"])))


def rebuild_student(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> NeuralFlowMap:
    """The student of a checkpoint with the given weights, which need not hold a frozen base."""
    about = content["export"]
    teacher = load_teacher(about["network_args"], about["data_shape"], about["network"])
    student = build_student(teacher, about["network_args"])
    student.load_state_dict(weights)
    return student.eval().requires_grad_(False)


def is_pretrained(export: Mapping[str, Any]) -> bool:
    """Whether an ``export`` entry describes a student of a pipeline."""
    return export["network"] in FAMILIES


def negative_of(sources: Sequence[str]) -> dict[str, Tensor]:
    """The negative prompt's conditions that the shards were encoded with.

    Raises:
        UserError: when no source has them.
    """
    for source in sources:
        if found := read_shared(source):
            return found
    raise UserError(
        f"teacher.guidance needs the negative prompt's conditions, which {sources[0]} has not: "
        "write it with `python -m data encode`, or leave teacher.guidance out"
    )


def _sources(config: Config) -> list[str]:
    return [one.source for one in config.data.sources] or [config.data.source]


def _range(guidance: Sequence[float]) -> tuple[float, float]:
    return (guidance[0], guidance[-1]) if guidance else (1.0, 1.0)
