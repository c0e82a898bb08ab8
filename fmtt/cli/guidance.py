"""The guidance scale that an export takes as an input, and which values of it its training saw."""

from __future__ import annotations

from typing import Any

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap

OPTION = "--guidance-scale"


def takes_scale(flow_map: NeuralFlowMap) -> bool:
    """Whether a loaded export's network is conditioned on a guidance scale."""
    return bool(flow_map.config["network"]["args"].get("guidance", False))


def trained_scales(flow_map: NeuralFlowMap) -> tuple[float, float] | None:
    """(lowest, highest) scale of the export's training; None where the export does not say."""
    guidance: Any = flow_map.config["trained"].get("guidance")
    scale = guidance.get("scale") if isinstance(guidance, dict) else None
    if not isinstance(scale, list) or len(scale) != 2 or not all(isinstance(w, int | float) for w in scale):
        return None
    return scale[0], scale[1]


def chosen_scale(flow_map: NeuralFlowMap, asked: float | None, export: str) -> float | None:
    """The scale that a command conditions the map on; None where it is not asked for one, which means 1.

    Args:
        asked: what --guidance-scale says, if anything.

    Raises:
        UserError: for a map without such an input, and for a scale that its training did not see.
    """
    if not takes_scale(flow_map):
        if asked is not None:
            raise UserError(f"{export} takes no guidance scale as an input; leave {OPTION} out")
        return None
    scales = trained_scales(flow_map)
    if scales is None:
        return asked
    low, high = scales
    if not low <= (1.0 if asked is None else asked) <= high:
        given = "without the option it is 1" if asked is None else f"got {asked:g}"
        raise UserError(f"{export} is trained for {OPTION} from {low:g} to {high:g}, {given}")
    return asked


def check_teacher(teacher: NeuralFlowMap, scale: float | None, export: str, option: str) -> None:
    """Refuse a teacher whose velocity is not the one at ``scale``.

    Raises:
        UserError: where it takes no scale and is asked for another than 1, or was not trained for this one.
    """
    if takes_scale(teacher):
        chosen_scale(teacher, scale, f"{option} {export}")
    elif scale not in (None, 1.0):
        raise UserError(
            f"{option} {export} takes no guidance scale as an input, so it is not the reference at "
            f"{OPTION} {scale:g}; leave {option} out"
        )
