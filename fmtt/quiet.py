"""No progress bars and advice from packages of models: the caller reports what matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def quiet(*packages: str, warnings: bool = False) -> Iterator[None]:
    """Switch bars, and warnings unless they are asked for, of ``diffusers`` or ``transformers`` off, and back
    to what they were."""
    logs = [import_module(f"{package}.utils.logging") for package in packages]
    before = [(log.is_progress_bar_enabled(), log.get_verbosity()) for log in logs]
    try:
        for log in logs:
            log.disable_progress_bar()
            if not warnings:
                log.set_verbosity_error()
        yield
    finally:
        for log, (bars, level) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
