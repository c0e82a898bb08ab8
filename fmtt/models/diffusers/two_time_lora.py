"""Public two-time adapters: LoRA weights in diffusers' layout and a second time embedding, in one file.

Their network embeds both times, the second by a copy of the embedding that is trained with the adapters, and
averages the two (second_time="averaged").
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers.student import ADAPTER, Lora, add_lora, network_of

LORA_KEY = re.compile(r"^(?:transformer\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight$")
EMBEDDER_KEY = re.compile(r"^.*?(?P<name>(?:timestep|guidance|text)_embedder\..+)$")


def load_two_time_lora(
    base: NeuralFlowMap, path: str | Path, *, alpha: float | None = None
) -> tuple[NeuralFlowMap, Lora]:
    """The flow map of a two-time adapter over ``base``, whose transformer it shares, and what was added.

    Args:
        base: the model that the adapter was trained on, without adapters.
        path: a safetensors file. Keys with ``lora_A`` and ``lora_B`` are adapters; the rest must be one
            embedder each of ``timestep_embedder``, ``text_embedder`` and, where the base has it,
            ``guidance_embedder``, under any name in front.
        alpha: of the adapters; their rank if omitted.

    Raises:
        UserError: when the file is not such an adapter, or does not fit the base.
    """
    path, network = Path(path), network_of(base)
    adapters, embedder = _split(_read(path), path)
    ranks = {side["A"].shape[0] for side in adapters.values() if "A" in side}
    incomplete = [name for name, side in adapters.items() if len(side) != 2]
    if incomplete or len(ranks) != 1:
        what = f"{incomplete[0]} has one side only" if incomplete else f"ranks {sorted(ranks)} are mixed"
        raise UserError(f"{path}: {what}; every adapter needs lora_A and lora_B of one rank")
    lora = Lora(rank=ranks.pop(), alpha=alpha or 0.0, targets=tuple(adapters))
    own = type(network)(network.transformer, second_time="averaged", guidance=network.guidance, adapters=True)
    second = own.get_submodule("second_time.embed")
    _copy(dict(second.state_dict()), embedder, path)
    add_lora(own.transformer, lora, ())
    for name, side in adapters.items():
        try:
            layer = own.transformer.get_submodule(name)
            weights = {"weight_" + k: layer.get_submodule(f"lora_{k}.{ADAPTER}").weight for k in "AB"}
        except AttributeError as error:
            raise UserError(f"{path}: the base model has no layer {name} that takes an adapter") from error
        _copy(weights, {"weight_" + k: value for k, value in side.items()}, path, name)
    flow_map = NeuralFlowMap(own, base.interpolant, base.data_shape)
    return flow_map.eval().requires_grad_(False), lora


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file that can be read ({error})") from error


def _split(weights: dict[str, Tensor], path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Adapters by layer and side, and the second embedding's tensors."""
    adapters: dict[str, dict[str, Tensor]] = {}
    embedder: dict[str, Tensor] = {}
    for key, value in weights.items():
        if match := LORA_KEY.match(key):
            adapters.setdefault(match["module"], {})[match["side"]] = value
        elif match := EMBEDDER_KEY.match(key):
            embedder[match["name"]] = value
        else:
            raise UserError(f"{path}: {key} is neither an adapter's weight nor a second time embedding's")
    if not adapters:
        raise UserError(f"{path} holds no adapters (keys with lora_A and lora_B)")
    return adapters, embedder


@torch.no_grad()
def _copy(
    into: dict[str, Tensor], weights: dict[str, Tensor], path: Path, name: str = "the second time"
) -> None:
    for key in sorted(into.keys() ^ weights.keys()):
        raise UserError(f"{path}: {key} of {name} is {'missing' if key in into else 'unknown to the base'}")
    for key, value in into.items():
        if value.shape != weights[key].shape:
            found, wanted = tuple(weights[key].shape), tuple(value.shape)
            raise UserError(f"{path}: {key} of {name} has shape {found}, the base needs {wanted}")
        value.copy_(weights[key])
