"""LoRA layers inside a transformer that a teacher and its student share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def adapter_layers(transformer: nn.Module) -> list[Any]:
    """peft's layers; none where peft was never imported."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    if peft is None:
        return []
    return [module for module in transformer.modules() if isinstance(module, peft.BaseTunerLayer)]


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to a LoRA adapter."""
    return ".lora_A." in name or ".lora_B." in name


@contextmanager
def adapters_off(transformer: nn.Module) -> Iterator[None]:
    """Inside the block the transformer computes exactly what it did before adapters were added.

    Activation checkpointing is off too: it would repeat a forward after the block, with the adapters on.
    """
    layers = [layer for layer in adapter_layers(transformer) if not layer.disable_adapters]
    if not layers:
        yield
        return
    try:
        _switch(layers, off=True)
        with checkpointing_off(transformer):
            yield
    finally:
        _switch(layers, off=False)


@contextmanager
def checkpointing_off(transformer: nn.Module) -> Iterator[None]:
    """Inside the block every activation of a pass is kept for the reverse pass."""
    modules = [m for m in transformer.modules() if getattr(m, "gradient_checkpointing", False) is True]
    try:
        for module in modules:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def _switch(layers: list[Any], *, off: bool) -> None:
    for layer in layers:
        # peft's enable_adapters also changes requires_grad, which cannot be done inside a derivative.
        layer._disable_adapters = off
        assert layer.disable_adapters is off, "peft keeps this switch elsewhere now"
