"""The wheel: what is in it, and that it works with nothing installed but the core dependencies."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CORE = ("numpy", "omegaconf", "safetensors", "torch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fmtt", "data", "train", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True, timeout=200)
    return next(out.glob("fmtt-*.whl"))


@pytest.fixture(scope="module")
def core_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the core dependencies and what they require, and to nothing else."""
    folder = tmp_path_factory.mktemp("core")
    waiting, seen = [Requirement(name) for name in CORE], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        waiting += map(Requirement, distribution.requires or [])
        for file in distribution.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(str(distribution.locate_file(top)))
    return folder


def test_the_wheel_ships_fmtt_alone_with_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "fmtt",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "fmtt").rglob("*") if path.is_file()}
    expected = {name for name in sources if "__pycache__" not in name}
    assert expected <= set(names), sorted(expected - set(names))
    assert any(name.endswith("LICENSE") for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)


def test_the_wheel_samples_and_tilts_on_the_core_dependencies(
    wheel: Path, core_packages: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path += [{str(installed)!r}, {str(core_packages)!r}]\n"
        "import torch, fmtt\nfrom fmtt.__main__ import main\nfrom fmtt.rewards import build\n"
        f"assert fmtt.__file__.startswith({str(installed)!r})\n"
        "flow_map = fmtt.load('clock-map')\n"
        "fmtt.sample(flow_map, 2, steps=2)\n"
        "reward = build('clock:time=3:47,sharpness=4')\n"
        "fmtt.tilt(flow_map, reward, num_particles=2, num_steps=3, weights='path')\n"
        "sys.exit(main(['sample', 'clock-map', '--steps', '2', '--num-samples', '2', '--out', 'out']))\n"
    )
    # -I and -S: no site-packages, no user site, no PYTHONPATH.
    done = subprocess.run(
        [sys.executable, "-I", "-S", script], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").exists()
