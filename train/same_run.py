"""Whether a configuration continues the run of a folder, or is another one's."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from fmtt.errors import UserError
from train.config import Config, to_yaml
from train.export import read_config
from train.global_batch import GLOBAL_BATCH, global_batch

RESUME_FIXED = (
    *("seed", "teacher", "student", "objective", "guidance", "times", "optimizer", "ema", "weighting"),
    "adversarial",
    *("data.source", "data.sources"),
)
"""Keys that a run cannot change when it continues."""


def check_same_run(config: Config, run_dir: Path) -> None:
    """Refuse to continue a run under settings that would make it another run.

    Raises:
        UserError: naming the first key that differs.
    """
    # A key that the run's version did not have yet counts as its default.
    saved = OmegaConf.merge(OmegaConf.create(to_yaml(Config())), read_config(run_dir / "config.yaml"))
    now = OmegaConf.create(to_yaml(config))
    for section in RESUME_FIXED:
        value = OmegaConf.select(now, section)
        keys = [f"{section}.{key}" for key in value] if OmegaConf.is_dict(value) else [section]
        for key in keys:
            old, new = OmegaConf.select(saved, key), OmegaConf.select(now, key)
            if old != new:
                raise UserError(_another_run(f"{key} is {new}", run_dir, str(old)))
    old, new = (global_batch(c) for c in (saved, now))
    if old != new:
        raise UserError(_another_run(f"{' x '.join(GLOBAL_BATCH)} is {new}", run_dir, str(old)))


def _another_run(what: str, run_dir: Path, old: str) -> str:
    return (
        f"{what}, but the run in {run_dir} was started with {old}: "
        "set it back, or give another run_dir to start afresh"
    )
