"""The job scripts without a cluster: they parse, share one beginning, and the page says what can be set.

What they do on a cluster is tested in tests/cluster.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fmtt.cli.parser import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "slurm"
JOBS = sorted(FOLDER.glob("*.sbatch"))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [*JOBS, *FOLDER.glob("*.sh")], ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_every_job_can_be_requeued_and_says_how_to_submit_it(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    directives = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    for needed in ("--requeue", "--open-mode=append", "--signal=B:USR1@120", "--nodes=1"):
        assert needed in directives
    (output,) = (word for word in directives if word.startswith("--output="))
    assert (FOLDER.parent / output.removeprefix("--output=")).parent.is_dir()  # SLURM does not make it
    assert f"slurm/{script.name}" in text.split("\n#SBATCH")[0] and ". slurm/common.sh" in text
    assert re.search(r"^(launch|train) ", text, re.MULTILINE)
    assert f"`{script.name}`" in PAGE


def test_the_page_names_every_setting_and_no_other() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.s*"))
    used = set(re.findall(r"\bFMTT_[A-Z_]+", scripts))
    assert used == set(re.findall(r"\bFMTT_[A-Z_]+", PAGE))


@pytest.fixture
def submitted(tmp_path: Path):
    """``submitted("compare.sbatch", "EXPORT", ..., BUDGETS="4")``: what a job of the file runs, in words,
    with an srun and a python that only say so."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stubs = {"scontrol": "echo n1", "srun": 'shift; exec "$@"', "python": "printf '%q ' \"$@\""}
    stubs["container"] = f'echo "$*" >> {tmp_path}/contained; exec "$@"'
    for name, does in stubs.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{does}\n")
        (bin_folder / name).chmod(0o755)

    def run(script: str, *arguments: str, **environment: str) -> list[str]:
        own = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "FMTT_PYTHON": str(bin_folder / "python")}
        command = ["bash", str(FOLDER / script), *arguments]
        options = {"cwd": FOLDER.parent, "env": {**os.environ, **own, **environment}, "timeout": 60}
        done = subprocess.run(command, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr
        return shlex.split(done.stdout)

    return run


def test_compare_runs_the_real_command_once_for_each_budget_and_seed(submitted) -> None:
    seen = set()
    for task in range(4):
        settings = {"BUDGETS": "64 256", "SEEDS": "0 5", "SLURM_ARRAY_TASK_COUNT": "4"}
        words = submitted(
            *("compare.sbatch", "clock-map", "OUT", "--reward", "clock:time=3:47", "--runs", "8"),
            **{**settings, "SLURM_ARRAY_TASK_ID": str(task)},
        )
        assert words[:2] == ["-m", "fmtt"]
        args = build_parser().parse_args(words[2:])
        assert (args.command, args.export, args.reward, args.runs) == (
            "compare",
            "clock-map",
            "clock:time=3:47",
            8,
        )
        (budget,) = args.budgets
        assert args.out == Path(f"OUT/budget-{budget:g}-seed-{args.seed}")
        seen.add((budget, args.seed))
    assert seen == {(64, 0), (64, 5), (256, 0), (256, 5)}


def array(index: int, *tasks: int) -> dict[str, str]:
    """What SLURM tells the task ``index`` of an array of ``tasks``."""
    told = {"ID": index, "COUNT": len(tasks), "MIN": min(tasks), "MAX": max(tasks)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def test_compare_takes_some_of_its_points_again_and_refuses_one_that_is_none(submitted) -> None:
    words = submitted("compare.sbatch", "clock-map", "OUT", **array(3, 3))
    assert words[-1] == "OUT/budget-256-seed-0"
    with pytest.raises(AssertionError, match="there is no point 9: submit with --array=0-8"):
        submitted("compare.sbatch", "clock-map", "OUT", **array(9, 0, 9))


def test_prompts_takes_some_of_its_parts_again(submitted) -> None:
    words = ("prompts.sbatch", "clock-map", "SUITE", "OUT")
    assert submitted(*words, **array(1, 0, 1, 2))[-2:] == ["--part", "1/3"]
    assert submitted(*words, **array(3, 3), PARTS="8")[-2:] == ["--part", "3/8"]
    for index, tasks in ((3, (3,)), (8, range(1, 9)), (2, (0, 2, 4))):
        with pytest.raises(AssertionError, match="set PARTS"):
            submitted(*words, **array(index, *tasks))


def test_encode_takes_some_of_its_parts_again(submitted) -> None:
    def part(index: int, *tasks: int, **environment: str) -> list[str]:
        own = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", **array(index, *tasks), **environment}
        return submitted("encode.sbatch", "SHARDS", **own)[-4:]

    assert part(2, 0, 1, 2) == ["--part", "5", "--parts", "6"]
    assert part(3, 3, 5, PARTS="16") == ["--part", "7", "--parts", "16"]
    alone = submitted("encode.sbatch", "SHARDS", SLURM_NTASKS="4", SLURM_PROCID="3")
    assert alone[-4:] == ["--part", "3", "--parts", "4"]
    for index, tasks in ((3, (3,)), (10, range(0, 11, 2)), (1, (1, 2))):
        with pytest.raises(AssertionError, match="set PARTS"):
            part(index, *tasks)
    with pytest.raises(AssertionError, match="PARTS=5 must be a multiple of the 2 tasks"):
        part(1, 0, 1, PARTS="5")  # nobody would take the fifth


def test_a_sweep_reads_its_grid_in_the_container(submitted, tmp_path: Path) -> None:
    words = ("sweep.sbatch", "GRID", "OUT", "distill", "CONFIG")
    assert "run_dir=OUT/002" in submitted(*words, FMTT_CONTAINER="container", **array(2, 2))
    contained = (tmp_path / "contained").read_text().splitlines()
    assert [line.split()[1:4] for line in contained] == [
        ["-m", "train.sweep", "GRID"],
        ["-m", "train", "distill"],
    ]


def test_evaluate_runs_the_real_command(submitted) -> None:
    words = submitted("evaluate.sbatch", "clock-map", "--out", "OUT", "--num-samples", "8")
    args = build_parser().parse_args(words[2:])
    assert (args.command, args.export, args.num_samples) == ("evaluate", "clock-map", 8)
