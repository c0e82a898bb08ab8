"""A student whose velocity is its teacher's, exactly."""

from __future__ import annotations

from typing import Any

import torch

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.models.dit import DiT
from train.config import Config
from train.teacher import Teacher

ANCHORED = "anchored_dit"


def is_anchored(config: Config, source: NeuralFlowMap | None) -> bool:
    """Whether the student is; ``source``: where its weights come from, None for fresh ones.

    Raises:
        UserError: one line that names the key, for what an anchored student cannot be.
    """
    if config.student.network == ANCHORED:
        raise UserError(
            f"student.network: {ANCHORED} is not asked for by name, as it needs a teacher's weights: "
            "leave it out, distil and set student.anchored=true"
        )
    if config.student.anchored and source is None:
        raise UserError(
            "student.anchored needs distill, a teacher that is the export of a dit, and student.init: "
            "teacher or the export of a map alike"
        )
    if source is None or not (config.student.anchored or isinstance(source.network, AnchoredDiT)):
        return False
    if config.guidance.method or config.guidance.scale[0] < config.guidance.scale[1]:
        key = "method" if config.guidance.method else "scale"
        raise UserError(
            f"guidance.{key}: an anchored student has its teacher's velocity, unguided: leave guidance out"
        )
    return True


def anchored(student: NeuralFlowMap, args: dict[str, Any], teacher: Teacher | None) -> NeuralFlowMap:
    """A map with the velocity of ``teacher`` and the weights of ``student`` where jumps end at t = 1.

    Args:
        student: a ``dit``, or anchored itself; it is taken apart.
        args: of its network.
        teacher: a ``dit``, or anchored and so with the velocity of one.

    Raises:
        UserError: when the two are not alike.
    """
    fixed = teacher.network if isinstance(teacher, NeuralFlowMap) else None
    fixed = fixed.anchor if isinstance(fixed, AnchoredDiT) else fixed
    own = student.network.own if isinstance(student.network, AnchoredDiT) else student.network
    if not isinstance(teacher, NeuralFlowMap) or not isinstance(fixed, DiT) or not isinstance(own, DiT):
        raise UserError(
            "student.anchored, or a student.init that is anchored, needs a teacher and a student.init that "
            "are exports of a dit: give the teacher that the map was distilled from"
        )
    its_args = teacher.config["network"]["args"]
    if its_args != args or teacher.prediction != student.prediction:
        raise UserError(
            f"student.init: an anchored student must be like its teacher, {its_args} with prediction "
            f"{teacher.prediction}, not {args} with {student.prediction}; student.init=teacher is"
        )
    network = AnchoredDiT(student.data_shape, **args)
    network.anchor.load_state_dict(fixed.state_dict())
    weights, basis = student.network.state_dict(), "embed.basis"
    found = next((value for name, value in weights.items() if name.endswith(basis)), None)
    if found is not None and not torch.equal(found, fixed.state_dict()[basis]):
        raise UserError(
            "student.init sees other principal components than the teacher, whose velocity an anchored "
            "student keeps: take student.init=teacher, or the teacher that it was distilled from"
        )
    its = own.state_dict()
    network.own.load_state_dict({name: its[name] for name in network.own.state_dict()})
    student.network = network
    return student
