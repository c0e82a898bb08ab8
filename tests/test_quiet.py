"""Packages of models are silent inside the block, and as they were after it."""

from __future__ import annotations

from importlib import import_module

import pytest

from fmtt.quiet import quiet


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
@pytest.mark.parametrize("bars", [True, False], ids=["bars", "no bars"])
def test_silence_ends_with_the_block(package: str, bars: bool) -> None:
    pytest.importorskip(package)
    log = import_module(f"{package}.utils.logging")
    before = log.is_progress_bar_enabled(), log.get_verbosity()

    def switch(on: bool) -> None:
        (log.enable_progress_bar if on else log.disable_progress_bar)()

    try:
        switch(bars)
        log.set_verbosity(log.INFO)
        with pytest.raises(RuntimeError, match="inside"), quiet(package):
            assert not log.is_progress_bar_enabled() and log.get_verbosity() == log.ERROR
            raise RuntimeError("inside")
        assert (log.is_progress_bar_enabled(), log.get_verbosity()) == (bars, log.INFO)
    finally:
        switch(before[0])
        log.set_verbosity(before[1])
