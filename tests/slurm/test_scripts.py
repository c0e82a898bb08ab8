"""The job scripts without a cluster: they parse, share one beginning, and the page says what can be set.

What they do on a cluster is tested in tests/cluster.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

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
