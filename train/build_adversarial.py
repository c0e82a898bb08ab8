"""The discriminator that a configuration describes."""

from __future__ import annotations

import inspect

import torch

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.models.checkpoint import NETWORKS
from train.adversarial import Adversarial
from train.choice import choose
from train.config import Config
from train.discriminator import Discriminator

OWN = ("guidance", "principal", "num_classes")
"""Arguments of networks that are none of a discriminator's."""
DISCRIMINATORS = {name: network for name, network in NETWORKS.items() if network is not AnchoredDiT}
"""It judges at one time: an anchor alone would serve."""


def build_adversarial(
    config: Config, stage: str, student: NeuralFlowMap, network: str, classes: int
) -> Adversarial | None:
    """The discriminator of a student with that network and so many classes; None where none is asked for.

    Raises:
        UserError: for settings that do not go with it.
    """
    c = config.adversarial
    if c.weight == 0:
        return None
    refused = {
        "is for distill": stage == "pretrain",
        "needs trainer.strategy=auto or ddp": config.trainer.strategy not in ("auto", "ddp"),
        "needs trainer.compile=false": config.trainer.compile,
        "needs another trainer.precision than 16-mixed": config.trainer.precision == "16-mixed",
    }
    for reason, wrong in refused.items():
        if wrong:
            raise UserError(f"adversarial.weight {reason}; 0 trains without a discriminator")
    name = choose("adversarial.network", c.network or network.removeprefix("anchored_"), DISCRIMINATORS)
    known = [p for p in inspect.signature(DISCRIMINATORS[name]).parameters if p != "data_shape"]
    args = {**c.args}
    for key in args:
        choose("adversarial.args", key, [p for p in known if p not in OWN])
    if classes:
        args["num_classes"] = classes
    # Equal on all ranks, and the student's weights are those of a run without it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            discriminator = Discriminator(student.data_shape, name, args)
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"adversarial.args: {str(error).splitlines()[0]}") from error
    return Adversarial(discriminator, c, config.trainer.accumulate)
