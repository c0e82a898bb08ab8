"""Pipelines and arrays of jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from slurm_cluster import Cluster

import fmtt

Submit = Callable[..., str]


def pipeline(cluster: Cluster, root: Path, logs: Path, *arguments: str, **environment: str) -> dict[str, str]:
    """The jobs that slurm/pipeline.sh submitted, by step."""
    options = f"--output={logs}/%x.out"
    text = cluster.run(
        root / "slurm/pipeline.sh", *arguments, SBATCH_ALL=options, OMP_NUM_THREADS="1", **environment
    )
    return dict(line.split() for line in text.splitlines())


def test_the_pipeline_delivers_an_export_and_an_evaluation(
    cluster: Cluster, root: Path, toy_yaml: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    settings = {"SBATCH_TRAIN": "--nodes=2", "EVALUATE": "--num-samples 8"}
    jobs = pipeline(cluster, root, tmp_path, str(run_dir), str(toy_yaml), "max_steps=50", **settings)
    assert list(jobs) == ["distill", "export", "evaluate"]
    for step, job in jobs.items():
        assert cluster.wait(job) == "COMPLETED", (tmp_path / f"fmtt-{step}.out").read_text()
    assert fmtt.load(run_dir / "export").data_shape == (2,)
    assert json.loads((run_dir / "evaluation/summary.json").read_text())


def test_what_follows_a_failed_step_is_cancelled(
    cluster: Cluster, root: Path, toy_yaml: Path, tmp_path: Path
) -> None:
    jobs = pipeline(cluster, root, tmp_path, str(tmp_path / "run"), str(toy_yaml), "max_steps=none")
    states = [cluster.wait(job) for job in jobs.values()]
    assert states == ["FAILED", "CANCELLED", "CANCELLED"]


def test_an_array_sweep(submit: Submit, cluster: Cluster, toy_yaml: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("optimizer.lr: [1.0e-3, 3.0e-4]\nobjective.name: [lmd]\n")
    job = submit(
        *("sweep", grid, tmp_path / "sweep", "distill", toy_yaml, "max_steps=5"), options=("--array=0-2",)
    )
    assert cluster.wait(job) == "COMPLETED+FAILED"  # there is no third point
    assert cluster.show(f"{job}_2")["ExitCode"] == "2:0"
    rates = [
        OmegaConf.load(tmp_path / f"sweep/00{i}/config.yaml").optimizer.lr  # pyright: ignore[reportAttributeAccessIssue]
        for i in (0, 1)
    ]
    assert rates == [1e-3, 3e-4] and not (tmp_path / "sweep/002").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "options", "lines"),
    [
        (
            "compare",
            ("EXPORT", "OUT", "--reward", "clock:time=3:47"),
            ("--array=0-3",),
            [
                "-m fmtt compare EXPORT --reward clock:time=3:47 "
                f"--budgets {b} --seed {s} --out OUT/budget-{b}-seed-{s}"
                for b in (64, 256)
                for s in (0, 5)
            ],
        ),
        (
            "encode",
            ("a b", "--out", "OUT"),
            ("--array=0-1", "--ntasks-per-node=2"),
            [f"-m data encode a b --out OUT --part {part} --parts 4" for part in range(4)],
        ),
    ],
)
def test_arrays_divide_the_work(
    script: str,
    arguments: tuple[str, ...],
    options: tuple[str, ...],
    lines: list[str],
    submit: Submit,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    """The shipped file with a program in python's place that says what it is asked to do."""
    settings = {"FMTT_PYTHON": "/bin/echo", "BUDGETS": "64 256", "SEEDS": "0 5"}
    job = submit(script, *arguments, options=options, **settings)
    assert cluster.wait(job) == "COMPLETED"
    said = [line for path in tmp_path.glob("*.out") for line in path.read_text().splitlines()]
    assert sorted(said) == sorted(lines)
