"""From a configuration to the objects of a run. The only place that turns names into classes."""

from __future__ import annotations

import copy
import inspect
import os
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from data.procedural import MODES
from fmtt.errors import UserError, nearest
from fmtt.flow.derivative import DERIVATIVES
from fmtt.flow.flow_map import PREDICTIONS, NeuralFlowMap
from fmtt.flow.interpolant import INTERPOLANTS
from fmtt.models.checkpoint import NETWORKS, load, shipped
from train.build_adversarial import build_adversarial
from train.build_anchored import ANCHORED, anchored, is_anchored
from train.choice import check_type, choose
from train.config import Config, NetworkConfig
from train.config_pretrained import PretrainedConfig
from train.losses import ANY_FLOW, DIAGONAL, OBJECTIVES, SEES_DATA, FlowMapLoss, sum_of
from train.module import FlowMapModule
from train.teacher import METHODS, ORACLE, ORACLES, SELF, Guidance, Teacher
from train.times import DISTRIBUTIONS, MIDPOINTS, TimeSampler
from train.weighting import check_times


def build_network(config: NetworkConfig, data_shape: tuple[int, ...]) -> NeuralFlowMap:
    """A student with fresh weights."""
    network_class = NETWORKS[choose("student.network", config.network, NETWORKS)]
    signature = inspect.signature(network_class)
    allowed = [p for p in signature.parameters if p != "data_shape"]
    for name, value in config.args.items():
        choose("student.args", name, allowed)
        check_type(f"student.args.{name}", value, signature.parameters[name].default)
    try:
        network = network_class(data_shape, **config.args)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"student.args: {str(error).splitlines()[0]}") from error
    interpolant = INTERPOLANTS[choose("student.interpolant", config.interpolant, INTERPOLANTS)]()
    prediction = choose("student.prediction", config.prediction, PREDICTIONS)
    return NeuralFlowMap(network, interpolant, data_shape, prediction=prediction)


def build_objective(config: Config, stage: str) -> FlowMapLoss:
    """The objective of a run.

    Raises:
        UserError: for a name that does not exist, or terms that do not say what is to be learned.
    """
    objective, times, own = config.objective, config.times, config.teacher == SELF
    key = "objective.terms" if objective.terms else "objective.name"
    terms = objective.weights()
    for name in terms:
        choose(key, name, OBJECTIVES)
    label = " + ".join(terms)
    if stage == "pretrain":
        if list(terms) != ["flow_matching"]:
            raise UserError(f"{key}: {label!r} is not an objective of pretrain: use flow_matching")
        return sum_of(terms) if objective.terms else OBJECTIVES[label]
    if "psd" in terms and len(terms) > 1:
        raise UserError("objective.terms: psd is itself a sum: name psd_u and diagonal")
    names = {"psd_u", "diagonal"} if label == "psd" else set(terms)
    if names == {"flow_matching"}:
        raise UserError(f"{key}: flow_matching alone is not an objective of distill: use pretrain")
    if names <= set(ANY_FLOW):
        wanted = "flow_matching" if own else "diagonal"
        raise UserError(
            f"{key}: any flow satisfies {label}: add {wanted}, as in terms {{{label}: 1, {wanted}: 1}}"
        )
    if own and not names & set(SEES_DATA):
        raise UserError(f"{key}: with teacher: {SELF}, {label} sees no data: add flow_matching")
    on, off = sorted(names & set(DIAGONAL)), sorted(names - set(DIAGONAL))
    if on and off and not 0 < times.diagonal < 1:
        size = "positive" if times.diagonal == 0 else "below 1"
        seen = " and ".join(on if times.diagonal == 0 else off)
        raise UserError(f"times.diagonal must be {size} for {label}: no sample would be left for {seen}")
    if "psd_u" in terms and times.midpoint != "uniform":
        raise UserError(f"times.midpoint must be uniform for psd_u, got {times.midpoint}")
    if config.guidance.method and own and "tvm" in names:
        raise UserError(
            "guidance.method: tvm draws its own data velocity, which is not guided: use a teacher"
        )
    return sum_of(terms) if objective.terms else OBJECTIVES[label]


def build_guidance(config: Config, data_shape: tuple[int, ...], classes: int, *, alone: bool) -> Guidance:
    """The guidance of a run whose velocity has ``classes`` labels; ``alone``: without a teacher.

    Raises:
        UserError: for settings that do not go together.
    """
    c = config.guidance
    method = choose("guidance.method", c.method, METHODS) if c.method else ""
    if not method and c.scale != [1.0, 1.0]:
        raise UserError(f"guidance.scale needs guidance.method: {' or '.join(METHODS)}")
    if (method == "cfg" or c.dropout > 0) and classes == 0:
        key = "guidance.method=cfg" if method == "cfg" else "guidance.dropout"
        raise UserError(f"{key} needs a null label: the model has no labels (num_classes is 0)")
    if method == "autoguidance" and alone:
        raise UserError("guidance.method: autoguidance needs a teacher beside the weak one: use cfg")
    if (method == "autoguidance") != bool(c.weak):
        raise UserError("guidance.weak: autoguidance needs the export of a weak velocity model, cfg has none")
    weak = load_teacher(c.weak, data_shape, "guidance.weak") if c.weak else None
    scale, interval = (c.scale[0], c.scale[1]), (c.interval[0], c.interval[1])
    return Guidance(method, weak, scale, interval, c.dropout, classes or None)


def build_module(config: Config, stage: str, data_shape: tuple[int, ...]) -> FlowMapModule:
    """The module of a ``pretrain`` or ``distill`` run on data of shape ``data_shape``.

    Raises:
        UserError: for a name that does not exist, an objective of the other command, a teacher that is
            missing or does not fit the data.
    """
    objective = build_objective(config, stage)
    check_times(config.objective, config.weighting)
    choose("times.distribution", config.times.distribution, DISTRIBUTIONS)
    choose("times.midpoint", config.times.midpoint, MIDPOINTS)
    if config.times.whole > 0 and list(config.objective.weights()) != ["trajectory"]:
        raise UserError("times.whole is for objective.name=trajectory, which jumps inside; set it to 0")
    if config.times.whole > 0 and config.times.gap_start < 1:
        raise UserError("times.gap_start must be 1 with times.whole, whose gaps are the longest")
    if config.times.whole > 0 and config.times.midpoint != "uniform":
        raise UserError("times.midpoint must be uniform with times.whole: the jumps' places are drawn by it")
    choose("derivative", config.derivative, DERIVATIVES)
    torch.manual_seed(config.seed)
    times = TimeSampler(**asdict(config.times))
    if isinstance(config.teacher, PretrainedConfig):
        from train.pretrained import build_pair

        if config.adversarial.weight > 0:
            raise UserError("adversarial.weight is not for teacher: {pretrained: ...}; leave it out")
        if config.student.anchored:
            raise UserError("student.anchored is not for teacher: {pretrained: ...}; leave it out")
        pair = build_pair(config, stage, data_shape)
        pair.student.train()
        return FlowMapModule(pair.student, pair.teacher, objective, times, config, pair.export, pair.guidance)
    if config.student.lora is not None or config.student.own_guidance:
        key = "lora" if config.student.lora is not None else "own_guidance"
        raise UserError(f"student.{key} is for students of teacher: {{pretrained: ...}}; leave it out")
    kind = "velocity" if stage == "pretrain" else "flow_map"
    network, args = config.student.network, dict(config.student.args)
    teacher = None if stage == "pretrain" else build_teacher(config, data_shape)
    conditioned = config.guidance.scale[0] < config.guidance.scale[1]
    source = initial_map(config, stage, data_shape, teacher)
    keeps_velocity = is_anchored(config, source)
    if source is not None:
        network, args = source.config["network"]["name"], dict(source.config["network"]["args"])
        student = student_of(source, network, args, conditioned)
        if keeps_velocity:
            network, student = ANCHORED, anchored(student, args, teacher)
    else:
        if conditioned:
            args["guidance"] = True
        wanted = NetworkConfig(network, args, config.student.interpolant, config.student.prediction)
        student = build_network(wanted, data_shape)
        if isinstance(teacher, NeuralFlowMap) and student.interpolant.name != teacher.interpolant.name:
            own, its = student.interpolant.name, teacher.interpolant.name
            raise UserError(f"student.interpolant is {own}, the teacher's is {its}: set it to {its}")
    adversarial = build_adversarial(config, stage, student, network, int(args.get("num_classes", 0)))
    if stage == "pretrain":
        # A velocity model has one time; the second one's embedding stays the zero function.
        second_time = getattr(student.network, "second_time", None)
        if not isinstance(second_time, nn.Module):
            raise UserError(
                f"student.network: {network} has no second_time, which pretrain holds at zero and distill "
                "trains: add it as CONTRIBUTING.md shows"
            )
        second_time.requires_grad_(False)
    classes = int(args.get("num_classes", 0))
    if config.teacher == f"{ORACLE}mixture-labelled" and stage == "distill" and classes != MODES:
        raise UserError(
            f"student.args.num_classes must be {MODES} for teacher: {config.teacher}, got {classes}"
        )
    guidance = build_guidance(config, data_shape, classes, alone=teacher is None)
    export: dict[str, Any] = {"kind": kind, "network": network, "network_args": args}
    export |= {"interpolant": student.interpolant.name, "prediction": student.prediction}
    export |= {"data_shape": list(data_shape)}
    if stage == "pretrain":
        times = times._replace(diagonal=1.0, endpoint=0.0, whole=0.0)
    student.train()
    return FlowMapModule(student, teacher, objective, times, config, export, guidance, adversarial)


def initial_map(
    config: Config, stage: str, data_shape: tuple[int, ...], teacher: Teacher | None
) -> NeuralFlowMap | None:
    """Whose weights the student starts with; None for fresh ones.

    Raises:
        UserError: for an export that does not exist or fits neither the data nor the teacher.
    """
    initial = config.student.init
    names = ("teacher", "scratch")
    if stage == "pretrain" or initial in names or not (os.path.isdir(initial) or initial in shipped()):
        if initial not in names:
            near = nearest(initial, [*names, *shipped()])
            raise UserError(f"student.init: {initial!r} is not one of {', '.join(names)} nor an export{near}")
        return teacher if isinstance(teacher, NeuralFlowMap) and initial == "teacher" else None
    source = load(initial)
    check_shape("student.init", initial, source, data_shape)
    wanted = teacher.interpolant.name if isinstance(teacher, NeuralFlowMap) else config.student.interpolant
    if source.interpolant.name != wanted:
        raise UserError(
            f"student.init: the interpolant of {initial} is {source.interpolant.name}, not {wanted}"
        )
    return source


def student_of(
    teacher: NeuralFlowMap, network: str, args: dict[str, Any], conditioned: bool
) -> NeuralFlowMap:
    """A copy to be trained; ``args`` gains the guidance embedding where it is conditioned."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    student.bidirectional = False
    if conditioned and not args.get("guidance", False):
        args["guidance"] = True
        wanted = NetworkConfig(network, args, teacher.interpolant.name, teacher.prediction)
        fresh = build_network(wanted, teacher.data_shape).network
        fresh.load_state_dict(student.network.state_dict(), strict=False)
        student.network = fresh
    return student


def build_teacher(config: Config, data_shape: tuple[int, ...]) -> Teacher | None:
    """Whose velocity a distillation learns; None for the student's own.

    Raises:
        UserError: for a teacher that does not exist or does not fit the data.
    """
    if config.teacher == SELF:
        return None
    if not config.teacher.startswith(ORACLE):
        return load_teacher(config.teacher, data_shape)
    name = choose("teacher", config.teacher.removeprefix(ORACLE), ORACLES)
    interpolant = INTERPOLANTS[choose("student.interpolant", config.student.interpolant, INTERPOLANTS)]()
    teacher = ORACLES[name](interpolant)
    check_shape("teacher", config.teacher, teacher, data_shape)
    return teacher


def load_teacher(path: str, data_shape: tuple[int, ...], key: str = "teacher") -> NeuralFlowMap:
    """A frozen velocity model."""
    if not path:
        raise UserError(
            "teacher: give the export of a velocity model (a folder, or clock-teacher), self or oracle:NAME"
        )
    teacher = load(path)
    check_shape(key, path, teacher, data_shape)
    return teacher


def check_shape(key: str, name: str, teacher: Teacher, data_shape: tuple[int, ...]) -> None:
    """Refuse a teacher of other data."""
    if tuple(teacher.data_shape) != tuple(data_shape):
        raise UserError(
            f"{key}: {name} is for samples of shape {tuple(teacher.data_shape)}, "
            f"those of data.source have {tuple(data_shape)}"
        )
