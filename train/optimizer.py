"""Muon for hidden matrices, AdamW for everything else, behind one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from fmtt.errors import UserError
from train.muon import Muon

OTHER_LAYOUT = "the checkpoint's optimizer is laid out as in an older version: give another run_dir"
HIDDEN = frozenset({"blocks", "layers"})
"""What networks call the modules between their first and last layer."""


class MuonWithAdamW(Optimizer):
    """Two optimizers that step together, so that schedulers and checkpoints see one.

    Muon takes hidden matrices; AdamW takes embeddings, outputs and vectors.

    Args:
        matrices, others: the two groups of parameters.
        muon_lr, lr: their learning rates.
        weight_decay: of both.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        muon_lr: float,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if others:
            self.parts.append(AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay))
        super().__init__([*matrices, *others], {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            for part, state in zip(self.parts, state_dict["parts"], strict=True):
                part.load_state_dict(state)
        except ValueError as error:
            raise UserError(OTHER_LAYOUT) from error
        for p, state in ((p, state) for part in self.parts for p, state in part.state.items()):
            if any(isinstance(v, Tensor) and v.ndim > 0 and v.shape != p.shape for v in state.values()):
                raise UserError(OTHER_LAYOUT)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices of the network's ``blocks`` or ``layers``, all other parameters), trainable ones only."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        path = [part for part in name.split(".") if part not in ("network", "own", "_orig_mod")]
        hidden = path[0] in HIDDEN  # of our own networks: not the layers of a transformer of diffusers
        is_matrix = hidden and parameter.ndim == 2 and name.endswith(".weight")
        (matrices if is_matrix else others).append(parameter)
    return matrices, others


def learning_rate_factor(
    step: int, *, warmup: int, max_steps: int, decay_share: float, final: float
) -> float:
    """Linear warm-up, constant, then linear decay to ``final`` over the last ``decay_share`` of steps."""
    start = max_steps * (1 - decay_share)
    factor = min(1.0, (step + 1) / max(1, warmup))
    if step > start:
        factor *= max(final, 1 - (1 - final) * (step - start) / max(1.0, max_steps - start))
    return factor
