"""Derivatives that an objective holds constant in its target, beside the value that it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fmtt.types import FlowMap


def with_constant(
    student: FlowMap, both: Callable[[], tuple[Tensor, Tensor]], value: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """(value with its graph, derivative without one), each (B, *D).

    One pass gives both, but a pass that carries a tangent cannot be repeated in the reverse pass, and keeps
    what every block computed. A student that repeats its blocks gets the derivative without a graph, and the
    value by a pass of its own: one forward more, and no activations but its blocks' inputs.

    Args:
        both: the value and its derivative by one differentiated pass.
        value: the value alone.
    """
    if not repeats_blocks(student):
        found, derivative = both()
        return found, derivative.detach()
    with torch.no_grad():
        _, derivative = both()
    return value(), derivative


def repeats_blocks(student: object) -> bool:
    """Whether activation checkpointing is on in a student, by the attribute that diffusers' models have."""
    modules = student.modules() if isinstance(student, nn.Module) else ()
    return any(getattr(module, "gradient_checkpointing", False) is True for module in modules)
