"""The processes of a run: those that torchrun, or the user's own torch.distributed, has started."""

from __future__ import annotations

import math
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from fmtt.errors import UserError
from fmtt.steering.ranks import ALONE, TIMEOUT, RankError, Ranks

PROCESSES = ("all", "one")


def find(processes: str = "all", timeout: float = TIMEOUT, device: torch.device | str = "cpu") -> Ranks:
    """The processes that share a run: those of torch.distributed, which under torchrun is started here.

    Args:
        processes: "all", or "one" for a run of its own in each process.
        timeout: seconds to wait for another process.
        device: of the particles; gloo connects CPUs, NCCL GPUs.

    Raises:
        UserError: when an argument is wrong.
        RankError: when the other processes do not come up.
    """
    if processes not in PROCESSES:
        raise UserError(f"processes must be one of {', '.join(PROCESSES)}, got {processes!r}")
    if not 0 < timeout < math.inf:
        raise UserError(f"rank_timeout must be positive, in seconds, got {timeout}")
    if processes == "one" or not dist.is_available():
        return ALONE
    device = torch.device(device)
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return ALONE
        try:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except RuntimeError as error:
            raise RankError(f"the other processes did not come up within {timeout:g} s: {error}") from error
    if dist.get_world_size() == 1:
        return ALONE
    transport = device if dist.get_backend() == "nccl" else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), timeout, transport)


def part() -> None:
    """Leave the group of processes, where there is one; for programs that own their process."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
