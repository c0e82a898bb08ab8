"""Which column of metrics.csv tells the best checkpoint."""

from __future__ import annotations

from fmtt.errors import UserError
from train.callbacks import Evaluation
from train.choice import choose
from train.config import Config
from train.teacher import SELF

LOOKAHEAD = "lookahead"


def best_column(config: Config, stage: str) -> str:
    """``checkpoint.best`` of a ``pretrain`` or ``distill`` run, ``auto`` resolved; empty for none.

    Raises:
        UserError: for a look-ahead error that such a run does not measure.
    """
    wanted, own = config.checkpoint.best, config.teacher == SELF
    columns = [] if stage == "pretrain" or config.evaluate.num_samples == 0 else Evaluation.columns(own=own)
    if wanted == "auto":
        # A map that stands still agrees with its own velocity: that error ranks no checkpoints.
        return "" if own or not columns else f"{LOOKAHEAD}/map_1@0"
    if wanted.startswith(LOOKAHEAD):
        if not columns:
            why = "pretrain has no map" if stage == "pretrain" else "evaluate.num_samples is 0"
            raise UserError(f"checkpoint.best: no {wanted} is measured, since {why}: set it to auto")
        choose("checkpoint.best", wanted, columns)
    return wanted
