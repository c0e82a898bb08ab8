"""Every shipped configuration of a pipeline builds, with a tiny pipeline in the place of the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fmtt.models.diffusers.pretrained import FAMILIES
from tests.train.diffusers.conftest import SHAPE
from train.build import build_module
from train.config import load_config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = [path for name in FAMILIES for path in sorted((ROOT / "configs" / name).glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_builds(path: Path, folder: Callable[[str], str], shards: Callable[[str], str]):
    name = path.parent.name
    own = [f"teacher.pretrained={folder(name)}", f"data.source={shards(name)}", "teacher.dtype=float32"]
    config = load_config(path, own)
    module = build_module(config, "distill", SHAPE)
    assert module.student.data_shape == SHAPE and config.run_dir.startswith("runs/")
    assert load_config(path).teacher.family == name
