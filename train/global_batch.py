"""How many samples an optimizer step takes, over all processes."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import OmegaConf

GLOBAL_BATCH = ("batch_size", "trainer.accumulate", "trainer.devices", "trainer.num_nodes")
"""Keys of the configuration whose product it is."""


def global_batch(config: Any) -> int:
    """The samples of an optimizer step under a configuration, as OmegaConf reads or writes it."""
    config = OmegaConf.create(config)
    return math.prod(OmegaConf.select(config, key, default=1) for key in GLOBAL_BATCH)
