"""A progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor

from fmtt.rewards.description import score
from fmtt.types import Cond, FlowMap, Reward, Time

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """``with Progress("tilt", total) as bar: bar.advance(n)``.

    On a terminal a bar on stderr, by rich where it is installed; else a line on stdout now and then. Nothing
    where ``quiet``.
    """

    def __init__(self, label: str, total: int, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.label, self.total, self.done = label, max(total, 1), 0
        self.bar: Any = None
        self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.quiet:
            try:
                from rich.console import Console
                from rich.progress import Progress as Bar

                self.bar = Bar(console=Console(stderr=True), transient=True)
                self.bar.start()
                self.task = self.bar.add_task(self.label, total=self.total)
            except ImportError:
                self.bar = None
        return self

    def advance(self, n: int = 1) -> None:
        """Record ``n`` finished units."""
        self.done += n
        if self.bar is not None:
            self.bar.update(self.task, completed=min(self.done, self.total))
        elif not self.quiet and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            print(f"{self.label}: {min(100, 100 * self.done // self.total)} %", flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


def track(items: Sequence[int], label: str) -> Iterator[int]:
    """Yield the items under a progress bar."""
    with Progress(label, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()


class WatchedReward:
    """A reward that reports how many samples it has scored."""

    def __init__(self, reward: Reward, bar: Progress) -> None:
        self.reward, self.bar = reward, bar
        self.differentiable = getattr(reward, "differentiable", None)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        scores = score(self.reward, x1, cond)
        self.bar.advance(x1.shape[0])
        return scores


class WatchedMap:
    """A flow map that reports how many samples it has moved."""

    def __init__(self, flow_map: FlowMap, bar: Progress) -> None:
        self.flow_map, self.bar, self.interpolant = flow_map, bar, flow_map.interpolant

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        moved = self.flow_map(x, s, t, cond)
        self.bar.advance(x.shape[0])
        return moved

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return self.flow_map.velocity(x, t, cond)
