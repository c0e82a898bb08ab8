"""The cost meter: what a run spent, in passes of the network per sample.

One forward of one sample is the unit; a backward through it counts two, and so does a jvp. Comparisons
between methods are made at equal ``passes``; reward calls and seconds are reported beside.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fmtt.steering.ranks import Ranks


@dataclass
class Cost:
    """Counts over all particles of all populations.

    Attributes:
        forwards: network forwards, one per sample.
        backwards: forwards that were differentiated through in reverse mode, one per sample.
        jvps: forward-mode passes, one per sample.
        reward_calls: finished or looked-ahead samples that were scored.
        decodes: latents that were decoded.
        seconds: wall-clock time.
        peak_bytes: the CUDA allocator's peak during the run; on a CPU the process's peak resident set. Of
            several processes, the largest.
        populations: independent runs that share these counts.
    """

    forwards: int = 0
    backwards: int = 0
    jvps: int = 0
    reward_calls: int = 0
    decodes: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    populations: int = 1

    @property
    def passes(self) -> int:
        """Network passes in all: forwards + 2 backwards + 2 jvps."""
        return self.forwards + 2 * self.backwards + 2 * self.jvps

    @property
    def passes_per_population(self) -> float:
        """Network passes of one independent run."""
        return self.passes / self.populations

    def as_dict(self) -> dict[str, float]:
        """All fields and ``passes``, for a summary."""
        return {**asdict(self), "passes": self.passes}

    def over(self, ranks: Ranks) -> Cost:
        """The sum over processes; of seconds and peak bytes the largest."""
        if ranks.size == 1:
            return self
        counts = (self.forwards, self.backwards, self.jvps, self.reward_calls, self.decodes)
        total = ranks.gather(torch.tensor([counts]), ranks.size).sum(0).tolist()
        mine = torch.tensor([[self.seconds, float(self.peak_bytes)]], dtype=torch.float64)
        seconds, peak = ranks.gather(mine, ranks.size).amax(0).tolist()
        return Cost(*total, seconds=seconds, peak_bytes=int(peak), populations=self.populations)

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[None]:
        """Fill in seconds and peak bytes of the block."""
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(device)
                self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated(device))
            else:
                unit = 1 if sys.platform == "darwin" else 1024
                self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            self.seconds += time.perf_counter() - start
