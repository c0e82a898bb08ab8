"""The data of a run: its sources, and what its first samples are conditioned on."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.mixing import Source
from data.module import Sources, open_batches
from fmtt.types import Cond
from train.config import Config, DataConfig


def sources_of(data: DataConfig) -> Sources:
    """What is opened: ``data.sources`` where there are any."""
    return [Source(s.source, s.weight) for s in data.sources] or data.source


def reading_options(data: DataConfig) -> dict[str, Any]:
    """How it is read: arguments of data.module.open_batches."""
    return {"max_bad_fraction": data.max_bad_fraction, "timeout": data.timeout, "tries": data.tries}


def first_conditions(config: Config, count: int) -> Cond | None:
    """The conditions (count, ...) of the first samples: the same however often a run is continued, and by
    however many processes."""
    batches = open_batches(sources_of(config.data), 1, seed=config.seed, **reading_options(config.data))
    return batches.take(np.arange(count)).cond
