"""Muon: momentum whose matrices are orthogonalised before they are applied.

torch.optim.Muon multiplies in bfloat16 always; a processor without native bfloat16 emulates it forty times
slower than float32, and the optimizer then takes longer than the network. So here a CPU multiplies in
float32, and a GPU in bfloat16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton-Schulz steps of steepest slope at zero: singular values end within about [0.7, 1.2]."""
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (n, a, b) with their singular values brought near 1, in their own dtype."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalise_pieces(matrices: list[DTensor], dtype: torch.dtype) -> list[DTensor]:
    """:func:`orthogonalise` for matrices in pieces, along their first dimension.

    They are dealt out whole to the processes, each of which does its share, and cut up again.
    """
    mesh, shape = matrices[0].device_mesh, (len(matrices), *matrices[0].shape)
    *others, _ = matrices[0].placements
    rows, whole = [*others, Shard(1)], [*others, Shard(0)]
    strides = (shape[1] * shape[2], shape[2], 1)

    def as_one(pieces: Tensor, placements: list[Any]) -> DTensor:
        return DTensor.from_local(
            pieces, mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides
        )

    mine = as_one(torch.stack([m.to_local() for m in matrices]), rows).redistribute(placements=whole)
    done = as_one(orthogonalise(mine.to_local(), dtype), whole).redistribute(placements=rows)
    return [
        DTensor.from_local(piece, mesh, m.placements, run_check=False, shape=m.shape, stride=m.stride())
        for piece, m in zip(done.to_local(), matrices, strict=True)
    ]


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised (arXiv 2502.16982, with its scale: steps as large as AdamW's).

    Args:
        matrices: 2-D parameters.
    """

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)  # matrices of one shape are orthogonalised together
            for p in group["params"]:
                if p.grad is not None:
                    alike[(p.shape, p.device, p.dtype)].append(p)
            for parameters in alike.values():
                self._step(parameters, group["lr"], group["weight_decay"])
        return loss

    def _step(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        directions = []
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            momentum = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
            directions.append(p.grad.lerp(momentum, MOMENTUM))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        dtype = torch.float32 if parameters[0].device.type == "cpu" else torch.bfloat16
        if isinstance(directions[0], DTensor):
            steps = orthogonalise_pieces(directions, dtype)
        else:
            steps = orthogonalise(torch.stack(directions), dtype)
        for p, direction in zip(parameters, steps, strict=True):
            p.mul_(1 - lr * weight_decay).add_(direction, alpha=-lr * scale)
