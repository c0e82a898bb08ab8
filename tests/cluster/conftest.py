"""The test cluster, and toy trainings for its jobs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models import checkpoint

sys.path.insert(0, str(Path(__file__).parent))  # for slurm_cluster.py

if TYPE_CHECKING:
    from slurm_cluster import Cluster

HERE = Path(__file__).parent
TOY = """\
seed: 3
max_steps: 800
batch_size: 16
teacher: {teacher}
objective: {{name: lmd}}
optimizer: {{warmup: 2}}
ema: {{half_lives: [20]}}
data: {{source: mixture}}
checkpoint: {{every_steps: 50, keep: 2}}
log: {{every_steps: 10}}
evaluate: {{every_steps: 1000, num_samples: 4, grid_samples: 0}}
trainer: {{accelerator: cpu}}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(2400))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real SLURM with the nodes n1 and n2, for the session."""
    from slurm_cluster import missing, running_cluster

    reason = missing()
    if reason:
        warnings.warn(f"NOTHING ABOUT SLURM IS TESTED: {reason}", stacklevel=1)
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="session")
def toy_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a toy distillation of 2-D points, without run_dir; some 100 steps a second."""
    folder = tmp_path_factory.mktemp("toy")
    args = {"width": 16, "depth": 1}
    torch.manual_seed(0)
    network = checkpoint.NETWORKS["mlp"]((2,), **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    about = {"kind": "velocity", "trained": {}, "metrics": {}, "card": "# Toy"}
    flow_map = NeuralFlowMap(network, Linear(), (2,))
    checkpoint.save(flow_map, folder / "teacher", network="mlp", network_args=args, **about)
    path = folder / "toy.yaml"
    path.write_text(TOY.format(teacher=folder / "teacher"))
    return path


@pytest.fixture
def submit(cluster: Cluster, root: Path, tmp_path: Path) -> Callable[..., str]:
    """``submit("distill", "CONFIG", ..., options=("--nodes=2",), NAME="value")``: sbatch of a shipped file as
    its comment says; output in ``tmp_path/JOB.out``. The job's number."""

    def run(script: str, *arguments: str | Path, options: tuple[str, ...] = (), **environment: str) -> str:
        output = f"--output={tmp_path}/%j.out"
        words = (output, *options, root / "slurm" / f"{script}.sbatch", *arguments)
        return cluster.submit(*words, cwd=root, OMP_NUM_THREADS="1", **environment)

    return run
