"""A cell of a comparison: some independent runs of one method at one budget, and the file that holds it.

Cells are the unit of work: they run in any order and in any process, and a finished one is never run again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmtt.baselines import budget
from fmtt.errors import UserError
from fmtt.files import atomic_write
from fmtt.tensor import batch_time
from fmtt.types import Cond, FlowMap, Reward, VelocityField

BATCH = 16
"""Runs of a cell: populations of one batch."""
RETURN_TIME = 0.8
"""Noise added back to a returned sample before the map restores it; see :func:`restoration_error`."""


class Cell(NamedTuple):
    """``runs`` runs of ``method`` on ``passes`` network passes each: what ``amount`` comes to in passes."""

    method: str
    amount: float
    passes: int
    batch: int
    runs: int

    @property
    def place(self) -> str:
        """What its random numbers are drawn for."""
        return f"{self.method}-{self.amount:g}-{self.batch:03d}"

    @property
    def name(self) -> str:
        """The stem of the cell's file. It holds the number of runs: the last cell of a smaller comparison is
        not that of a larger one."""
        return f"{self.place}x{self.runs}"


class Runs(NamedTuple):
    """What R runs returned; all (R,) but ``best``.

    Attributes:
        best: (R, *D) each run's sample of highest reward.
        reward: the optimised reward of it.
        judge: what the judge says of it; nan without a judge.
        restoration: its distance to the model's own law, see :func:`restoration_error`.
        passes, reward_calls, seconds: spent per run; seconds are shared by the runs of a batch.
    """

    best: Tensor
    reward: Tensor
    judge: Tensor
    restoration: Tensor
    passes: Tensor
    reward_calls: Tensor
    seconds: Tensor


@dataclass(frozen=True)
class Setting:
    """What every cell works with.

    Attributes:
        judge: samples (B, *D) to (B,), never optimised.
        cond: conditioning of one row.
    """

    flow_map: FlowMap
    reward: Reward
    velocity: VelocityField | None = None
    judge: Callable[[Tensor], Tensor] | None = None
    cond: Cond | None = None
    chunk_size: int | None = 256
    device: torch.device | str = "cpu"
    seed: int = 0


def plan(methods: Sequence[str], passes: dict[str, dict[float, int]], runs: int) -> list[Cell]:
    """Cells of all methods at all their budgets, the cheapest first.

    Args:
        passes: by method, the passes that each budget comes to.
    """
    cells = [
        Cell(method, amount, spent, batch, min(BATCH, runs - batch * BATCH))
        for method in methods
        for amount, spent in passes[method].items()
        for batch in range(-(-runs // BATCH))
    ]
    return sorted(cells, key=lambda cell: cell.passes)


def run(setting: Setting, cell: Cell) -> Runs | None:
    """Run a cell. None where the budget is too small for the method.

    The same setting and cell give the same samples, whatever ran before.
    """
    seed = zlib.crc32(f"{setting.seed}/{cell.place}".encode())
    generator = torch.Generator(setting.device).manual_seed(seed)
    try:
        result = budget.run(
            cell.method,
            setting.flow_map,
            setting.reward,
            budget=cell.passes,
            num_populations=cell.runs,
            velocity=setting.velocity,
            cond=setting.cond,
            chunk_size=setting.chunk_size,
            generator=generator,
        )
    except budget.TooSmall:
        return None
    best, cost = result.best, result.cost

    def spent(value: float) -> Tensor:
        return torch.full((cell.runs,), value / cell.runs, dtype=torch.float64)

    with torch.no_grad():
        nan = torch.full((cell.runs,), float("nan"))
        judged = nan if setting.judge is None else setting.judge(best)
        restored = restoration_error(setting.flow_map, best, setting.cond, generator)
    return Runs(
        best.detach(),
        result.best_rewards.double(),
        judged.double(),
        restored,
        spent(cost.passes),
        spent(cost.reward_calls),
        spent(cost.seconds),
    )


@torch.no_grad()
def restoration_error(
    flow_map: FlowMap, x: Tensor, cond: Cond | None, generator: torch.Generator | None = None
) -> Tensor:
    """How far samples (B, *D) are from the model's own law, (B,): noise them a little, let the map restore
    them, and take the root mean square change. Samples of the model change little; what a reward has pushed
    off its manifold is pulled back.
    """
    t = batch_time(RETURN_TIME, x)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    noisy = flow_map.interpolant.interpolate(noise, x, t)
    rows = None if cond is None else {k: v.expand(x.shape[0], *v.shape[1:]) for k, v in cond.items()}
    restored = flow_map(noisy, t, torch.ones_like(t), rows)
    return (restored - x).double().square().flatten(1).mean(1).sqrt()


def save(folder: Path, cell: Cell, runs: Runs | None) -> None:
    """Write a finished cell; one whose budget was too small is an empty file of tensors."""
    tensors = {} if runs is None else {k: v.cpu().contiguous() for k, v in runs._asdict().items()}
    with atomic_write(folder / f"{cell.name}.safetensors") as temporary:
        save_file(tensors, temporary)


def load(folder: Path, cell: Cell) -> Runs | None:
    """A finished cell.

    Raises:
        UserError: when its file is damaged.
    """
    path = folder / f"{cell.name}.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and run the same command") from error
    return Runs(**tensors) if tensors else None


def discard(folder: Path, plan: Iterable[Cell]) -> bool:
    """Delete the cells' files; True when the folder then holds no other, and is gone too."""
    for cell in plan:
        (folder / f"{cell.name}.safetensors").unlink(missing_ok=True)
    if any(folder.glob("*")):
        return False
    folder.rmdir()
    return True


def finished(folder: Path, cell: Cell) -> bool:
    """Whether the cell's file is there."""
    return (folder / f"{cell.name}.safetensors").is_file()
