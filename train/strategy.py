"""FSDP2: student, teacher, averages and optimizer states in one piece per process, put together as needed.

A unit is what is put together at once: each block, and the rest of the network. A pass through a network
takes all processes of its mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.types import Cond, Time, VelocityField
from train import sharded_checkpoint

FSDP, HSDP = "fsdp", "hsdp"
"""Values of ``trainer.strategy``: pieces over all processes, or over a node's, every node with a copy."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy without tensor parallelism; checkpoints are folders of pieces.

    Args:
        processes: of the run.
        by_node: whether every node holds a whole copy (HSDP).
    """

    def __init__(self, processes: int, *, by_node: bool = False) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)
        self.by_node = by_node
        self._mesh: DeviceMesh | None = None

    @property
    def mesh(self) -> DeviceMesh:
        """The processes that share the pieces: (processes,), or (nodes, processes of a node)."""
        if self._mesh is None:
            shape = (self.num_nodes, self.num_processes) if self.by_node else (self.world_size,)
            names = ("replicate", "shard")[-len(shape) :]
            self._mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        return self._mesh

    # Lightning would gather states by its own optimizers' layout, and pickles; here states are taken as they
    # are, tensors in pieces, by the methods that it has for everything else.
    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        sharded_checkpoint.save(checkpoint, Path(self.broadcast(filepath)))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return sharded_checkpoint.load(path, mesh=self.mesh)
        content = torch.load(path, map_location="cpu", weights_only=True)
        assert self.lightning_module is not None
        return sharded_checkpoint.cut(content, self.lightning_module.state_dict(), self.mesh)


def mesh_of(strategy: object) -> DeviceMesh | None:
    """The mesh of a strategy that shards; None for any other."""
    return strategy.mesh if isinstance(strategy, ShardedStrategy) else None


def is_sharded(module: object) -> bool:
    """Whether a flow map's network is in pieces."""
    return isinstance(module, NeuralFlowMap) and isinstance(module.network, FSDPModule)


def shard(student: NeuralFlowMap, mesh: DeviceMesh, teachers: Sequence[object] = ()) -> None:
    """Cut ``student``, and those of ``teachers`` that are networks, in place.

    Teachers are cut like the student: as large as it is, a whole copy on each process would cost what the
    pieces save. The price is that a teacher's blocks, too, are put together for every pass. Weights that
    student and teacher share, as those under LoRA adapters, are cut once.
    """
    networks = [t.network for t in teachers if isinstance(t, NeuralFlowMap)]
    # What is shared is entered from two sides, and so has to be a unit of its own.
    shared = [part for network in networks for part in _shared(network, student.network)]
    root = _cut(student.network, mesh, dict.fromkeys(shared))
    # Otherwise the first pass decides which unit is the outermost one, and a teacher's may come first.
    root._get_fsdp_state()._lazy_init()
    for network in networks:
        if not isinstance(network, FSDPModule) and not _shared(network, student.network):
            _cut(network, mesh)


def _cut(network: nn.Module, mesh: DeviceMesh, parts: Iterable[nn.Module] = ()) -> FSDPModule:
    # An anchor's blocks are not called, only looked into by those that are: they belong to the whole.
    called = network.own if isinstance(network, AnchoredDiT) else network
    for unit in (*blocks(called), *parts):
        fully_shard(unit, mesh=mesh)
    # Taken apart after every pass, like the others: it would go on with the weights of this one, which may
    # be the averages.
    return fully_shard(network, mesh=mesh, reshard_after_forward=True)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The modules of the outermost lists, which is where networks keep their blocks."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def _shared(one: nn.Module, other: nn.Module) -> list[nn.Module]:
    """The outermost modules with weights that occur in both."""
    known, found = set(other.modules()), []
    for child in one.children():
        if child not in known:
            found += _shared(child, other)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def of_rank_zero(strategy: Strategy, velocity: VelocityField) -> VelocityField:
    """``velocity`` as rank 0 computes it, on every rank: solvers that adapt their steps stay together."""

    def field(x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        value = velocity(x, t, cond).contiguous()
        torch.distributed.broadcast(value, 0)
        return value

    return velocity if mesh_of(strategy) is None else field


def cond_of_rank_zero(strategy: Strategy, read: Callable[[], Cond | None]) -> Cond | None:
    """The conditions that ``read`` gives on rank 0, on the device of every rank that calls this: all where
    weights are in pieces, else rank 0 alone."""
    cond = read() if strategy.is_global_zero else None
    if mesh_of(strategy) is not None:
        cond = strategy.broadcast(cond)
    return None if cond is None else {name: value.to(strategy.root_device) for name, value in cond.items()}
