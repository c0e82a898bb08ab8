"""Where a run of many processes continues: one of them checks the checkpoints and tells the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from train.checkpoints import checkpoints, newest_checkpoint
from train.lost_process import naming_lost_processes

TOLD = "FMTT_CONTINUE_FROM"
"""How a process tells those that it starts itself: the checkpoint's name, empty for none."""


@contextmanager
def agreed_checkpoint(trainer: Trainer, folder: Path) -> Iterator[tuple[int, Path] | None]:
    """The newest checkpoint in order of ``folder``, the same on all ranks. Processes that Lightning starts
    inside the block learn of it.

    Checking takes a pass over the whole file, and all processes may share one disk. Rank 0 does it where a
    launcher (srun, torchrun) started all of them: the process group begins here already. Where processes of a
    node are started by its first one, that one does it.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    told = os.environ.get(TOLD)
    if trainer.world_size == 1 or environment is None or not environment.creates_processes_externally:
        found = newest_checkpoint(folder)
    elif told is not None and trainer.local_rank > 0:
        found = next(((step, path) for step, path in checkpoints(folder) if path.name == told), None)
    else:
        with naming_lost_processes():
            _begin_process_group(trainer)
            found = newest_checkpoint(folder) if trainer.is_global_zero else None
            found = trainer.strategy.broadcast(found)
    os.environ[TOLD] = "" if found is None else found[1].name
    try:
        yield found
    finally:
        del os.environ[TOLD]


def _begin_process_group(trainer: Trainer) -> None:
    """What Lightning does at the start of fit, which then finds it done."""
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):  # the rest of its setup needs the module
        strategy._setup_distributed()
    else:
        strategy.setup_environment()
