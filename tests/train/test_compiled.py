"""A compiled run learns what an eager one learns."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmtt.errors import UserError
from fmtt.models.checkpoint import load
from train.config import Config
from train.export import export_run
from train.run import train


def test_sharded_strategies_are_refused(toy: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match="trainer.compile works with strategy auto or ddp: fsdp takes"):
        train(toy("trainer.compile=true", "trainer.strategy=fsdp"), "pretrain")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
@pytest.mark.parametrize("objective", ["trajectory", "lmd", "lsd"])
def test_compiled_runs_end_with_the_weights_of_eager_ones(
    objective: str, toy: Callable[..., Config], tmp_path: Path
) -> None:
    weights = []
    for compiled in ("false", "true"):
        settings = ("max_steps=3", "evaluate.every_steps=100", f"trainer.compile={compiled}")
        run = train(toy(*settings, run=compiled, distill=objective), "distill")
        weights.append(load(export_run(run, tmp_path / f"export-{compiled}")).state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
