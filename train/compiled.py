"""torch.compile for the networks of a run."""

from __future__ import annotations

import torch._dynamo.config
import torch._inductor.config

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from train.config import Config
from train.module import FlowMapModule

WHOLE = ("auto", "ddp")
"""Strategies under which every process holds whole networks."""


def compile_networks(module: FlowMapModule, config: Config) -> None:
    """Compile the networks of student and teacher in place, each batch size for itself.

    Raises:
        UserError: under a strategy that takes networks apart.
    """
    if config.trainer.strategy not in WHOLE:
        raise UserError(
            f"trainer.compile works with strategy {' or '.join(WHOLE)}: {config.trainer.strategy} "
            "takes the networks apart, set it to false"
        )
    # Objectives that differentiate a tangent again (lsd, esd, tvm) get wrong gradients where the compiler
    # writes into buffers that forward-mode AD still reads.
    torch._inductor.config.allow_buffer_reuse = False
    # Every batch size counts, and beyond the limit a network runs uncompiled: training has up to six, and
    # evaluation has more.
    torch._dynamo.config.recompile_limit = 64
    for model in (module.student, module.teacher):
        if isinstance(model, NeuralFlowMap):
            model.network.compile(dynamic=False)
