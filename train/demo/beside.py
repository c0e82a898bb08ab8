"""The variants that need no flow map, tried by a process of their own while the map is being distilled.

Distilling so small a network keeps one processor busy; another would be idle.
"""

from __future__ import annotations

import signal
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from fmtt.flow.flow_map import NeuralFlowMap
from train.demo import hit_rate
from train.demo.hit_rate import Outcome
from train.demo.processes import begin

VARIANTS = (hit_rate.BASE, "best_of_n", "fmtt_tilt_denoiser", "fmtt_search_denoiser")


class Beside:
    """A process that is started once, asked once for what it found, and gone when the ``with`` block ends."""

    def __init__(self) -> None:
        self._process: Any = None
        self._receiver: Connection | None = None

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()

    def start(self, teacher: NeuralFlowMap, *, seed: int) -> None:
        """Begin with VARIANTS, at all budgets."""
        sizes = {"seed": seed, "runs": hit_rate.RUNS, "amounts": hit_rate.BUDGETS}
        context = get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(teacher, sizes, sender), daemon=True)
        self._process.start()
        sender.close()  # so that the end of the process is the end of what can be received

    def outcomes(self) -> dict[str, list[Outcome]]:
        """By variant, those that are done by now; the process ends, as more than one can do the rest."""
        found: dict[str, list[Outcome]] = {}
        while self._receiver is not None and len(found) < len(VARIANTS) and self._receiver.poll():
            try:
                variant, outcomes = self._receiver.recv()
            except EOFError:  # it died
                break
            found[variant] = outcomes
        self._end()
        return found


def _work(teacher: NeuralFlowMap, sizes: dict[str, Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    begin()
    for variant in VARIANTS:
        found = hit_rate.outcomes(variant, teacher, teacher, **sizes)
        try:
            sender.send((variant, found))
        except BrokenPipeError:  # nobody is there any more
            return
