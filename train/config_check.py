"""Values of the training configuration that no run can have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fmtt.errors import UserError

if TYPE_CHECKING:
    from train.config import Config


def check(config: Config) -> None:
    """Compare every value with its range.

    Raises:
        UserError: naming the first key that is outside, and what it must be.
    """
    lists = {
        "optimizer.betas": config.optimizer.betas,
        "ema.half_lives": config.ema.half_lives,
        "data.value_range": config.data.value_range,
        "guidance.scale": config.guidance.scale,
        "guidance.interval": config.guidance.interval,
        "times.s_density": config.times.s_density,
        "adversarial.betas": config.adversarial.betas,
    }
    for key, values in lists.items():
        if not all(isinstance(value, int | float) for value in values):  # OmegaConf lets nested lists pass
            raise UserError(f"{key} must be a list of numbers, got {values}")
    least_one = {
        "max_steps": config.max_steps,
        "batch_size": config.batch_size,
        "trainer.devices": config.trainer.devices,
        "trainer.num_nodes": config.trainer.num_nodes,
        "trainer.accumulate": config.trainer.accumulate,
        "data.tries": config.data.tries,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep": config.checkpoint.keep,
        "log.every_steps": config.log.every_steps,
        "evaluate.every_steps": config.evaluate.every_steps,
    }
    for key, value in least_one.items():
        if value < 1:
            raise UserError(f"{key} must be at least 1, got {value}")
    c, inf = config, math.inf
    ranges = {
        "seed": (c.seed, 0, 2**63 - 1),
        "times.diagonal": (c.times.diagonal, 0, 1),
        "times.endpoint": (c.times.endpoint, 0, 1),
        "times.whole": (c.times.whole, 0, 1),
        "times.diagonal + times.endpoint + times.whole": (
            c.times.diagonal + c.times.endpoint + c.times.whole,
            0,
            1,
        ),
        "times.mean": (c.times.mean, -100, 100),
        "times.std": (c.times.std, 0, 100),
        "objective.time_left_power": (c.objective.time_left_power, -10, 10),
        "ema.target_half_life": (c.ema.target_half_life, 0, inf),
        "optimizer.lr": (c.optimizer.lr, 0, inf),
        "optimizer.muon_lr": (c.optimizer.muon_lr, 0, inf),
        "optimizer.weight_decay": (c.optimizer.weight_decay, 0, inf),
        "optimizer.warmup": (c.optimizer.warmup, 0, inf),
        "optimizer.decay_share": (c.optimizer.decay_share, 0, 1),
        "optimizer.final": (c.optimizer.final, 0, 1),
        "optimizer.clip": (c.optimizer.clip, 0, inf),
        "trainer.timeout": (c.trainer.timeout, 1, inf),
        "evaluate.num_samples": (c.evaluate.num_samples, 0, inf),
        "evaluate.grid_samples": (c.evaluate.grid_samples, 0, inf),
    }
    for key, (value, low, high) in ranges.items():
        if not low <= value <= high:  # also true of nan
            wanted = f"be at least {low}" if high == inf else f"lie in [{low}, {high}]"
            raise UserError(f"{key} must {wanted}, got {value}")
    if not 0 <= c.data.max_bad_fraction < 1:
        raise UserError(f"data.max_bad_fraction must lie in [0, 1), got {c.data.max_bad_fraction}")
    if not c.data.timeout > 0:
        raise UserError(f"data.timeout must be greater than 0, got {c.data.timeout}")
    c.objective.check()
    c.guidance.check()
    c.times.check()
    c.weighting.check()
    c.adversarial.check()
    betas, low_high, half_lives = c.optimizer.betas, c.data.value_range, c.ema.half_lives
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas must be two numbers in [0, 1), got {betas}")
    if len(low_high) != 2 or not low_high[0] < low_high[1]:
        raise UserError(f"data.value_range must be [low, high] with low < high, got {low_high}")
    if not half_lives or not all(0 <= h < inf for h in half_lives):
        raise UserError("ema.half_lives needs at least one value, none negative (0: no averaging)")
    if len({f"{h:g}" for h in half_lives}) < len(half_lives):
        raise UserError(f"ema.half_lives holds a value twice: {half_lives}")
    for key, value in _numbers(asdict(config)):
        if not math.isfinite(value):
            raise UserError(f"{key} must be finite, got {value}")


def _numbers(node: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(key, value) of every number in nested mappings and lists."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _numbers(value, key)
    elif isinstance(node, float):
        yield key, node
