"""Exponential moving averages of the student's weights, several half-lives at once.

Only the student is averaged (the teacher never moves). The averages start as the initial weights and
use a shorter half-life early on, so that they forget the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Moving averages of a module's trainable parameters.

    Args:
        module: the student.
        half_lives: in steps; 0 follows the weights themselves.
    """

    def __init__(self, module: nn.Module, half_lives: list[float]) -> None:
        self.half_lives = list(half_lives)
        self.averages = [
            {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
            for _ in half_lives
        ]

    def to(self, device: torch.device) -> None:
        """Move the averages to where the student is."""
        for average in self.averages:
            average.update({name: value.to(device) for name, value in average.items()})

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Fold the weights after ``step`` steps (from 1) into every average."""
        current = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        for half_life, average in zip(self.half_lives, self.averages, strict=True):
            effective = min(half_life, step / 10)
            decay = 0.5 ** (1 / effective) if effective > 0 else 0.0
            for name, value in average.items():
                value.lerp_(current[name].to(value), 1 - decay)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Averages by half-life."""
        pairs = zip(self.half_lives, self.averages, strict=True)
        return {f"{half_life:g}": dict(average) for half_life, average in pairs}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore the averages.

        Raises:
            ValueError: when the checkpoint holds other half-lives.
        """
        wanted = [f"{h:g}" for h in self.half_lives]
        if list(state) != wanted:
            raise ValueError(f"ema.half_lives is {wanted}, but the checkpoint holds {list(state)}")
        for average, saved in zip(self.averages, state.values(), strict=True):
            for name, value in average.items():
                value.copy_(saved[name])

    @contextmanager
    def swapped_in(self, module: nn.Module, index: int = 0) -> Iterator[None]:
        """Inside the block the module carries the average number ``index``."""
        average = self.averages[index]
        parameters = {name: p for name, p in module.named_parameters() if name in average}
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            _assign(parameters, average)
            yield
        finally:
            _assign(parameters, kept)


@torch.no_grad()
def _assign(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
