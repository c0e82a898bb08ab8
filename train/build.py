"""From a configuration to the objects of a run. The only place that turns names into classes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from fmtt.errors import UserError, nearest
from fmtt.flow.flow_map import PREDICTIONS, NeuralFlowMap
from fmtt.flow.interpolant import INTERPOLANTS
from fmtt.models.checkpoint import NETWORKS, load
from train.config import Config, NetworkConfig
from train.losses import OBJECTIVES
from train.module import FlowMapModule
from train.times import DISTRIBUTIONS, MIDPOINTS, TimeSampler

STAGES = {"pretrain": ("flow_matching",), "distill": ("lsd", "lmd", "psd", "trajectory", "diagonal")}
"""The objectives that each command takes."""


def choose(key: str, name: str, options: Iterable[str]) -> str:
    """``name`` if it is among ``options``.

    Raises:
        UserError: naming the key, the options and the nearest one.
    """
    options = list(options)
    if name in options:
        return name
    raise UserError(f"{key}: {name!r} is not one of {', '.join(options)}{nearest(name, options)}")


def build_network(config: NetworkConfig, data_shape: tuple[int, ...]) -> NeuralFlowMap:
    """A student with fresh weights."""
    network_class = NETWORKS[choose("student.network", config.network, NETWORKS)]
    allowed = [p for p in inspect.signature(network_class).parameters if p != "data_shape"]
    for name in config.args:
        choose("student.args", name, allowed)
    try:
        network = network_class(data_shape, **config.args)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"student.args: {str(error).splitlines()[0]}") from error
    interpolant = INTERPOLANTS[choose("student.interpolant", config.interpolant, INTERPOLANTS)]()
    prediction = choose("student.prediction", config.prediction, PREDICTIONS)
    return NeuralFlowMap(network, interpolant, data_shape, prediction=prediction)


def build_module(config: Config, stage: str, data_shape: tuple[int, ...]) -> FlowMapModule:
    """The module of a ``pretrain`` or ``distill`` run on data of shape ``data_shape``.

    Raises:
        UserError: for a name that does not exist, an objective of the other command, a teacher that is
            missing or does not fit the data.
    """
    objective = OBJECTIVES[choose("objective.name", config.objective.name, OBJECTIVES)]
    if config.objective.name not in STAGES[stage]:
        raise UserError(f"objective.name: {config.objective.name!r} is not an objective of {stage}")
    choose("times.distribution", config.times.distribution, DISTRIBUTIONS)
    if config.times.distribution == "noise" and config.objective.name != "trajectory":
        raise UserError(
            f"times.distribution: 'noise' asks for s = 0 alone, which is not enough for "
            f"{config.objective.name}: use uniform or logit_normal"
        )
    choose("times.midpoint", config.times.midpoint, MIDPOINTS)
    torch.manual_seed(config.seed)
    kind = "velocity" if stage == "pretrain" else "flow_map"
    if stage == "pretrain":
        teacher = None
        student = build_network(config.student, data_shape)
        network, args = config.student.network, dict(config.student.args)
        # A velocity model has one time; the second one's embedding stays the zero function.
        student.network.get_submodule("second_time").requires_grad_(False)
    else:
        teacher = load_teacher(config.teacher, data_shape)
        network, args = teacher.config["network"]["name"], teacher.config["network"]["args"]
        if choose("student.init", config.student.init, ("teacher", "scratch")) == "teacher":
            student = copy.deepcopy(teacher).requires_grad_(True)
            student.bidirectional = False
        else:
            student = build_network(config.student, data_shape)
            network, args = config.student.network, dict(config.student.args)
            if student.interpolant.name != teacher.interpolant.name:
                own, its = student.interpolant.name, teacher.interpolant.name
                raise UserError(f"student.interpolant is {own}, the teacher's is {its}: set it to {its}")
    export: dict[str, Any] = {"kind": kind, "network": network, "network_args": args}
    export |= {"interpolant": student.interpolant.name, "prediction": student.prediction}
    export |= {"data_shape": list(data_shape)}
    times = TimeSampler(**asdict(config.times))
    if config.objective.name == "psd" and times.diagonal == 0:
        raise UserError("times.diagonal must be positive for psd: those samples alone see the teacher")
    if stage == "pretrain":
        times = times._replace(diagonal=1.0, endpoint=0.0)
    student.train()
    return FlowMapModule(student, teacher, objective, times, config, export)


def load_teacher(path: str, data_shape: tuple[int, ...]) -> NeuralFlowMap:
    """The frozen teacher of a distillation."""
    if not path:
        raise UserError("teacher: give the export of a velocity model (a folder, or clock-teacher)")
    teacher = load(path)
    if teacher.data_shape != tuple(data_shape):
        raise UserError(
            f"teacher: {path} is for samples of shape {teacher.data_shape}, "
            f"those of data.source have {tuple(data_shape)}"
        )
    return teacher
