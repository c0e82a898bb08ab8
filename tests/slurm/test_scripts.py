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


def test_compare_refuses_an_array_of_another_size(submitted) -> None:
    with pytest.raises(AssertionError, match="submit with --array=0-8"):
        submitted("compare.sbatch", "clock-map", "OUT", SLURM_ARRAY_TASK_COUNT="4", SLURM_ARRAY_TASK_ID="0")


def test_evaluate_runs_the_real_command(submitted) -> None:
    words = submitted("evaluate.sbatch", "clock-map", "--out", "OUT", "--num-samples", "8")
    args = build_parser().parse_args(words[2:])
    assert (args.command, args.export, args.num_samples) == ("evaluate", "clock-map", 8)
