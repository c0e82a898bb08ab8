"""How fast a run trains, what it waits for, and how much memory it takes."""

from __future__ import annotations

import math
import re
import resource
import statistics
import sys
import time
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from data.batch import Batch
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers.family import LatentTransformer
from fmtt.models.dit import DiT
from train.module import FlowMapModule

PREFIX = "throughput/"
"""Of the columns of metrics.csv that speak of the machine and not of the model."""


class Peak(NamedTuple):
    """Floating-point operations per second at most, in 1e12; dense, from NVIDIA's data sheets."""

    half: float
    tf32: float
    single: float


PEAKS = {
    r"B200": Peak(2250, 1125, 75),
    r"H100 PCIe": Peak(756, 378, 51),
    r"H100 NVL": Peak(835, 418, 60),
    r"(GH200|H200|H100)": Peak(989, 495, 67),
    r"A100": Peak(312, 156, 19.5),
    r"(RTX )?A6000": Peak(155, 77, 38.7),
    r"A40": Peak(150, 75, 37.4),
    r"L40S": Peak(362, 183, 91.6),
    r"L40": Peak(181, 90.5, 90.5),
    r"L4": Peak(121, 60, 30.3),
    r"RTX 4090": Peak(165, 82.6, 82.6),
    r"RTX 3090": Peak(71, 35.6, 35.6),
    r"V100": Peak(125, 15.7, 15.7),
}
"""By a part of the device's name; the first that matches."""


def peak_flops(device: str, precision: str) -> float | None:
    """Floating-point operations per second of a device of that name at most; None where not known."""
    for part, peak in PEAKS.items():
        if re.search(rf"\b{part}\b", device):
            rounded = torch.get_float32_matmul_precision() != "highest"
            single = peak.tf32 if rounded else peak.single
            return 1e12 * (single if precision.startswith("32") else peak.half)
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """:func:`peak_flops` of a GPU; None for a CPU."""
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def tokens_per_sample(student: NeuralFlowMap) -> int | None:
    """How many tokens attend to each other; None for a network without."""
    network = student.network
    if isinstance(network, DiT):
        return math.prod(network.grid)
    if isinstance(network, LatentTransformer):
        _, height, width = student.data_shape
        return height * width // network.patch(network.transformer.config) ** 2
    return None


def peak_memory(device: torch.device) -> int:
    """Bytes that tensors on the GPU took at most, or on a CPU the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Fetches(PassThroughProfiler):
    """When training last asked for a batch, and how long it then waited, in seconds."""

    asked = waited = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited = time.perf_counter() - self.asked


class Pass(NamedTuple):
    """Seconds of one pass on this rank."""

    total: float
    """From asking for the batch until the weights are updated; evaluating and saving come after."""
    waited: float
    """For the batch."""
    met: float
    """For the other ranks, when all tell each other that the loss is finite. The slowest waits least."""
    samples: int


class Throughput(Callback):
    """Logs ``throughput/...`` every ``every_steps`` steps and at the last, over the passes since then.
    It stands first.

    ``samples_per_s`` and ``tokens_per_s`` of all ranks together. ``data_wait``: the share of the time spent
    waiting for data, on the rank where it is largest. ``mfu``: model FLOP utilisation, the operations of
    the loss and its gradient, counted in the second pass, over what the device could do; Triton kernels
    are not counted. ``skew`` (several ranks): the median time that the fastest rank waits for the others
    before it has the loss, over the time of a pass, and ``slowest_rank``. ``memory_gb``: the peak so far, on
    the rank where it is largest.

    Sources: MFU as in arXiv 2204.02311, appendix B.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.flops: int | None = None
        self._fetches, self._passes, self._met = Fetches(), list[Pass](), 0.0
        self._peak: float | None = None
        self._tokens: int | None = None
        self._counter: FlopCounterMode | None = None
        self._seen, self._logged = 0, -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.profiler = self._fetches  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FlowMapModule)
        self._logged, device = trainer.global_step, trainer.strategy.root_device
        self._tokens = tokens_per_sample(pl_module.student)
        self._peak = peak_of(device, trainer.precision)
        if trainer.world_size > 1:
            self._time_meetings(trainer)

    def _time_meetings(self, trainer: Trainer) -> None:
        meet = trainer.strategy.reduce_boolean_decision

        def timed(decision: bool, all: bool = True) -> bool:
            start = time.perf_counter()
            try:
                return meet(decision, all)
            finally:
                self._met += time.perf_counter() - start

        trainer.strategy.reduce_boolean_decision = timed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._met = 0.0
        # The first pass loads kernels, fills caches and checks the derivative.
        if self._seen == 1 and self._peak is not None:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._stop_counting()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops, self._counter = self._counter.get_total_flops(), None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_counting()
        self._seen += 1
        if self._seen <= 1 + (self._peak is not None):
            return
        assert isinstance(batch, Batch)
        total = time.perf_counter() - self._fetches.asked
        self._passes.append(Pass(total, self._fetches.waited, self._met, len(batch.x)))
        step = trainer.global_step
        due = step % self.every_steps == 0 or step >= trainer.max_steps
        if not due or step == self._logged:
            return
        metrics = self._measure(trainer)
        self._passes.clear()
        self._logged = step
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({PREFIX + name: value for name, value in metrics.items()}, step - 1)
        for name in ("samples_per_s", "data_wait"):
            pl_module.log(name, metrics[name], prog_bar=True, logger=False)

    def _measure(self, trainer: Trainer) -> dict[str, float]:
        """The metrics by name; with several ranks they meet here."""
        device, passes = trainer.strategy.root_device, self._passes
        seconds = sum(one.total for one in passes)
        rate = trainer.world_size * sum(one.samples for one in passes) / seconds
        met = statistics.median(one.met for one in passes)
        own = [sum(one.waited for one in passes) / seconds, met, peak_memory(device) / 1e9]
        gathered: Tensor = torch.tensor([own], device=device)
        if trainer.world_size > 1:
            gathered = trainer.strategy.all_gather(gathered[0])
        waits, meetings, memory = gathered.cpu().unbind(1)
        metrics = {"samples_per_s": rate, "data_wait": float(waits.max()), "memory_gb": float(memory.max())}
        if self._tokens is not None:
            metrics["tokens_per_s"] = self._tokens * rate
        if self.flops is not None and self._peak is not None:
            metrics["mfu"] = self.flops * len(passes) / (seconds * self._peak)
        if trainer.world_size > 1:
            metrics["skew"] = float(meetings.max() - meetings.min()) * len(passes) / seconds
            metrics["slowest_rank"] = float(meetings.argmin())
        return metrics
