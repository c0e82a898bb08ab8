"""Batches for training from sources by name, resumable at any step and with any number of ranks.

The samples of a pass are a pure function of (sources, seed, pass, rank, number of ranks), so the state of the
data is a few numbers: how much of each sequence has been trained on. Loaders run ahead of training; these
numbers do not, which is why they are taken from the trainer and not from the loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker

from data.mixing import MixedBatches, Sequenced, Source
from data.order import SHUFFLE_WINDOW
from data.procedural import PROCEDURAL
from data.procedural_batches import ProceduralBatches
from data.shards import CACHE_BYTES, MAX_BAD_FRACTION, ShardBatches
from data.store import TIMEOUT, TRIES, Folder, open_store
from data.stream import AHEAD, Layout, Stream
from fmtt.errors import UserError, nearest

_STATE = {"passes", "used", "streams", "global_batch", "seed"}
Sources = str | Path | Sequence[Source]
"""One source, or several with weights."""


def open_batches(
    source: Sources,
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
    timeout: float = TIMEOUT,
    tries: int = TRIES,
) -> Sequenced:
    """The batches of a computed set (by name), of shards (by folder, URL or command), or of a mixture.

    ``num_samples`` is the size of a computed set; shards know their own. A name of
    :data:`data.procedural.PROCEDURAL` means the computed set; write ``./clock`` for a folder that is called
    so. For the other arguments see :class:`data.shards.ShardBatches`.

    Raises:
        UserError: when a source is none of these, or is not in order.
    """
    order: dict[str, Any] = {"seed": seed, "rank": rank, "world_size": world_size, "window": window}
    if not isinstance(source, (str, Path)):
        if not source:
            raise UserError("data.sources is empty; list at least one source")
        checks: dict[str, Any] = {"verify": verify, "max_bad_fraction": max_bad_fraction}
        fetch: dict[str, Any] = {"timeout": timeout, "tries": tries}
        sizes: dict[str, Any] = {"num_samples": num_samples, "cache_bytes": cache_bytes // len(source)}
        parts = [open_batches(one.source, 1, **order, **checks, **fetch, **sizes) for one in source]
        return MixedBatches(parts, [one.weight for one in source], batch_size, seed=seed, rank=rank)
    if isinstance(source, str) and source in PROCEDURAL:
        return ProceduralBatches(
            source, batch_size, num_samples=num_samples, cache_bytes=cache_bytes, **order
        )
    store = open_store(source, timeout=timeout, tries=tries)
    if isinstance(store, Folder) and not store.path.exists():
        raise UserError(
            f"data source {str(source)!r} is neither a folder of shards nor a computed set; sets: "
            f"{', '.join(PROCEDURAL)}; folders are written by `python -m data write`"
            f"{nearest(str(source), PROCEDURAL)}"
        )
    return ShardBatches(
        source,
        batch_size,
        cache_bytes=cache_bytes,
        verify=verify,
        max_bad_fraction=max_bad_fraction,
        timeout=timeout,
        tries=tries,
        **order,
    )


class DataModule(L.LightningDataModule):
    """Endless training batches for each rank of a Lightning run; resumes exactly from a checkpoint.

    Args:
        source: as in :func:`open_batches`.
        batch_size: samples per pass and rank.
        seed: of the order, and of the samples of a computed set.
        accumulate: passes per optimizer step.
        ahead: batches made in the background.
        options: further arguments of :func:`open_batches`.
    """

    def __init__(
        self,
        source: Sources,
        batch_size: int,
        *,
        seed: int = 0,
        accumulate: int = 1,
        ahead: int = AHEAD,
        **options: Any,
    ) -> None:
        super().__init__()
        self._source, self._options = source, options
        self._batch_size, self._seed, self._accumulate, self._ahead = batch_size, seed, accumulate, ahead
        self._saved: dict[str, int] = {}
        self.data_shape = self._open(0, Layout(batch_size)).data_shape

    def _open(self, stream: int, layout: Layout) -> Sequenced:
        held = -(-layout.streams // layout.world_size)  # sequences that a rank reads, and a cache for each
        options = {"cache_bytes": CACHE_BYTES // held, **self._options}
        of = {"seed": self._seed, "rank": stream, "world_size": layout.streams}
        return open_batches(self._source, self._batch_size, **of, **options)

    def train_dataloader(self) -> Stream:
        """This rank's batches, from the first one not yet trained on.

        Raises:
            UserError: when the global batch is not the checkpoint's.
        """
        layout = self._layout()
        saved = self._saved.get("global_batch", layout.global_batch)
        if layout.global_batch != saved:
            raise UserError(
                f"batch_size x trainer.accumulate x ranks is {layout.global_batch} but the checkpoint was "
                f"trained with {saved}: set it back or start a new run_dir"
            )
        return Stream(lambda number: self._open(number, layout), layout, ahead=self._ahead)

    def _layout(self) -> Layout:
        trainer, saved = self.trainer, self._saved
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        begun = (saved.get("streams", 0), saved.get("used", 0))
        return Layout(self._batch_size, rank, world_size, self._accumulate, *begun)

    def state_dict(self) -> dict[str, Any]:
        """How much of each sequence has been trained on, and what must not change on resuming."""
        passes = before = self._saved.get("passes", 0)
        if self.trainer is not None:
            total = self.trainer.fit_loop.epoch_loop.batch_progress.total
            assert isinstance(total, _ProcessedTracker)
            passes = total.processed
        layout = self._layout()
        state = {"passes": passes, "used": layout.used(passes - before), "streams": layout.streams}
        return {**state, "global_batch": layout.global_batch, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the samples that were trained on.

        Raises:
            UserError: when the seed differs from the checkpoint's, or the checkpoint does not tell.
        """
        if state_dict.get("seed") != self._seed:
            raise UserError(
                f"seed is {self._seed} but the checkpoint was trained with {state_dict.get('seed')}: "
                "set it back or start a new run_dir"
            )
        if missing := _STATE - state_dict.keys():
            raise UserError(
                f"the checkpoint does not say {', '.join(sorted(missing))} of its data: start a new run_dir"
            )
        self._saved = {key: int(state_dict[key]) for key in _STATE}
