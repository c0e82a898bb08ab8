"""Shared fixtures: determinism, few threads, no network, and running commands as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

ROOT = Path(__file__).resolve().parents[1]
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Small tensors run fastest on one or two threads, and results do not depend on the machine's cores."""
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch's global generator before each test, and put the default dtype back after it."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of this test's own, seeded with 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's root folder."""
    return ROOT


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_python("-m", "fmtt", ...)``: this Python, the checkout importable, in an empty folder.

    Keyword arguments of subprocess.run pass through; ``env`` adds to the environment.
    """

    def run(*args: str | Path, env: dict[str, str] | None = None, **kwargs: Any):
        own = {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 240, **kwargs}
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, env={**os.environ, **own, **(env or {})}, **options)

    return run
