# ruff: noqa: F811 (fixtures of another folder)
"""Runs that distil tiny random pipelines of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.index import Array, Header
from data.shared import write_shared
from data.write_set import Sample, write_set
from tests.models.diffusers.conftest import conditions, folder, quiet  # noqa: F401 (fixtures)
from train.config import Config, load_config

SHAPE = (4, 4, 4)
SAMPLES = 12
RUN = """\
seed: 1
max_steps: 2
batch_size: 2
student: {lora: {rank: 2}}
objective: {name: lmd}
times: {diagonal: 0.3}
optimizer: {warmup: 2, lr: 3.0e-3}
ema: {half_lives: [2]}
checkpoint: {every_steps: 2, keep: 2}
log: {every_steps: 1}
evaluate: {every_steps: 100000, num_samples: 0}
trainer: {accelerator: cpu}
"""
GUIDANCE = {"flux": "3.0", "sd3": "2.0", "sana": "[2.0,4.0]", "lumina2": "[2.0,4.0]"}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of random latents and conditions for a family, as ``data encode`` lays them out."""
    written: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in written:
            torch.manual_seed(1)
            cond, x = conditions(name, SAMPLES), torch.randn(SAMPLES, *SHAPE)
            negative = {key: value[:1] for key, value in cond.items() if key.startswith("negative_")}
            own = {key: v for key, v in cond.items() if key not in negative and key != "guidance_scale"}
            arrays = {key: Array(tuple(v.shape[1:]), str(v.dtype)[6:]) for key, v in own.items()}
            header = Header(name, 0, SAMPLES, SAMPLES, Array(SHAPE, "float32"), arrays)
            path: Path = tmp_path_factory.mktemp("latents") / name

            def samples(start: int, stop: int) -> list[Sample]:
                return [Sample(x[i], {key: v[i] for key, v in own.items()}) for i in range(start, stop)]

            write_set(path, header, samples)
            if negative:
                write_shared(path, negative)
            written[name] = str(path)
        return written[name]

    return of


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    """The file of a toy run, without run_dir, teacher and data."""
    path = tmp_path / "distill.yaml"
    path.write_text(RUN)
    return path


@pytest.fixture
def words(
    folder: Callable[[str], str], shards: Callable[[str], str], tmp_path: Path
) -> Callable[..., list[str]]:
    """``words("sd3", "max_steps=4", full=True)``: what the command line takes after the file's name."""

    def of(name: str, *more: str, full: bool = False, run: str = "run") -> list[str]:
        teacher = [f"teacher.pretrained={folder(name)}", f"teacher.family={name}"]
        own = [f"run_dir={tmp_path / run}", f"data.source={shards(name)}"]
        guidance = [f"teacher.guidance={GUIDANCE[name]}"]
        return [*own, *teacher, *guidance, *(["student.lora=null"] if full else []), *more]

    return of


@pytest.fixture
def settings(yaml: Path, words: Callable[..., list[str]]) -> Callable[..., Config]:
    """The configuration of those words."""
    return lambda *args, **kwargs: load_config(yaml, words(*args, **kwargs))
