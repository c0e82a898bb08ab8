"""Batches for training from a source by name, resumable at any step.

Batch k of a rank is a pure function of (source, seed, k, rank, world size), so the whole state of the
data is one number: how many batches have been trained on. Loaders run ahead of training; that number does
not, which is why it is taken from the trainer and not from the loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker

from data.batch import Batch
from data.order import SHUFFLE_WINDOW
from data.procedural import PROCEDURAL
from data.procedural_batches import ProceduralBatches
from data.shards import CACHE_BYTES, MAX_BAD_FRACTION, ShardBatches
from fmtt.errors import UserError


class Batches(Protocol):
    """The batches of one rank, by step."""

    @property
    def data_shape(self) -> tuple[int, ...]: ...

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches per rank and epoch; None where samples never repeat."""
        ...

    def batch(self, step: int) -> Batch: ...


def open_batches(
    source: str | Path,
    batch_size: int,
    *,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_samples: int | None = None,
    window: int = SHUFFLE_WINDOW,
    cache_bytes: int = CACHE_BYTES,
    verify: bool = True,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> Batches:
    """The batches of a computed set (by name) or of a folder of shards.

    ``num_samples`` is the size of a computed set; shards know their own.
    A name of :data:`data.procedural.PROCEDURAL` means the computed set; write ``./clock`` for a folder
    that is called so.

    Raises:
        UserError: when the source is neither, or is not in order.
    """
    if isinstance(source, str) and source in PROCEDURAL:
        return ProceduralBatches(
            source,
            batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_samples=num_samples,
            window=window,
            cache_bytes=cache_bytes,
        )
    if not Path(source).exists():
        raise UserError(
            f"data source {str(source)!r} is neither a folder of shards nor a computed set; "
            f"sets: {', '.join(PROCEDURAL)}; folders are written by `python -m data write`"
        )
    return ShardBatches(
        source,
        batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        window=window,
        cache_bytes=cache_bytes,
        verify=verify,
        max_bad_fraction=max_bad_fraction,
    )


class Stream:
    """An endless iterable over batches from ``start_step`` on."""

    def __init__(self, batches: Batches, start_step: int = 0) -> None:
        self.batches, self.start_step = batches, start_step

    def __iter__(self) -> Iterator[Batch]:
        step = self.start_step
        while True:
            yield self.batches.batch(step)
            step += 1


class DataModule(L.LightningDataModule):
    """Endless training batches for each rank of a Lightning run; resumes exactly from a checkpoint.

    Args:
        source: as in :func:`open_batches`.
        batch_size: samples per batch and rank.
        seed: of the order (shards) or of the samples (computed set).
        options: further arguments of :func:`open_batches`.
    """

    def __init__(self, source: str | Path, batch_size: int, *, seed: int = 0, **options: Any) -> None:
        super().__init__()
        self._open = lambda rank, world_size: open_batches(
            source, batch_size, seed=seed, rank=rank, world_size=world_size, **options
        )
        self._identity = {"batch_size": batch_size, "seed": seed}
        self.start_step = 0
        self.data_shape = self._open(0, 1).data_shape

    def train_dataloader(self) -> Stream:
        """This rank's batches, from the first one not yet trained on."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return Stream(self._open(rank, world_size), self.start_step)

    def state_dict(self) -> dict[str, Any]:
        """How many batches each rank has been trained on, and what must not change on resuming."""
        steps = self.start_step
        if self.trainer is not None:
            total = self.trainer.fit_loop.epoch_loop.batch_progress.total
            assert isinstance(total, _ProcessedTracker)
            steps = total.processed
        return {"step": steps, **self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the batches that were trained on.

        Raises:
            UserError: when the batch size or the seed differs from the checkpoint's.
        """
        for key, value in self._identity.items():
            if state_dict.get(key) != value:
                raise UserError(
                    f"{key} is {value} but the checkpoint was trained with {state_dict.get(key)}: "
                    "set it back or start a new run_dir"
                )
        self.start_step = int(state_dict["step"])
