"""What must be installed for what: the core runs on four packages, and everything installed is pinned."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.checkpoint import save
from fmtt.models.dit import DiT

ROOT = Path(__file__).resolve().parents[1]

WITHOUT_EXTRAS = """
import sys

OPTIONAL = (
    "torchdiffeq matplotlib jinja2 scipy sklearn PIL rich tqdm lightning pytorch_lightning torchmetrics "
    "webdataset wandb diffusers transformers peft accelerate torchvision train data"
)
sys.modules.update(dict.fromkeys(OPTIONAL.split()))  # importing one of them now fails
"""

CORE_CALLS = """
import torch
import fmtt
from fmtt.rewards import build

flow_map = fmtt.load(sys.argv[1])
reward = build("clock:time=3:47,sharpness=4")
generator = torch.Generator().manual_seed(0)
samples = fmtt.sample(flow_map, 2, steps=2, generator=generator)
assert samples.shape == (2, *flow_map.data_shape), samples.shape
tilted = fmtt.tilt(flow_map, reward, num_particles=2, num_steps=3, weights="path", generator=generator)
assert tilted.samples.shape == samples.shape
found = fmtt.search(flow_map, reward, num_particles=2, num_steps=3, keep=1, rounds=1, generator=generator)
assert found.samples.shape[1:] == samples.shape[1:]
"""

COMMAND = """
from fmtt.__main__ import main

sys.argv = ["fmtt", *sys.argv[1:]]
sys.exit(main())
"""


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An untrained flow map over images, written as an export."""
    args: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2}
    flow_map = NeuralFlowMap(DiT((3, 32, 32), **args), Linear(), (3, 32, 32))
    save(flow_map, tmp_path / "export", network="dit", network_args=args, trained={}, metrics={}, card="")
    return tmp_path / "export"


def test_the_core_needs_no_optional_package(run_python, export: Path) -> None:
    done = run_python("-c", WITHOUT_EXTRAS + CORE_CALLS, export)
    assert done.returncode == 0, done.stderr


def test_the_command_line_samples_without_optional_packages(run_python, export: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("sample", export, "--steps", "2", "--num-samples", "2", "--out", out)
    done = run_python("-c", WITHOUT_EXTRAS + COMMAND, *arguments)
    assert done.returncode == 0, done.stderr
    assert (out / "summary.json").exists()


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    project = pyproject()
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name != project["name"]:
            pinned = pins().get(canonicalize_name(requirement.name))
            assert pinned, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(pinned), f"{requirement}, but constraints.txt pins {pinned}"


def test_every_transitive_dependency_is_pinned() -> None:
    """Walk the requirements of what is installed, under this machine's markers."""
    project = pyproject()
    waiting = [Requirement(text) for text in project["dependencies"]]
    waiting += [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name == project["name"] or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            children = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        assert name in pins() or re.match(r"nvidia-|cuda-|triton$", name), f"{name} is not in constraints.txt"
        for child in map(Requirement, children):
            environments = [{"extra": extra} for extra in (extras or {""})]
            if child.marker is None or any(
                child.marker.evaluate(environment) for environment in environments
            ):
                waiting.append(child)


def test_what_some_tests_cannot_do_without_is_installed() -> None:
    """``pytest.importorskip`` serves partial installs; after ``make install`` it must skip nothing."""
    calls = (re.findall(r'importorskip\("([\w.]+)"\)', p.read_text()) for p in (ROOT / "tests").rglob("*.py"))
    needed = sorted({name for found in calls for name in found})
    assert "diffusers" in needed and "sklearn" in needed
    for name in needed:
        importlib.import_module(name)


def test_the_installed_version_is_the_stated_one() -> None:
    try:
        installed = importlib.metadata.version("fmtt")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fmtt is not installed in this environment")
    assert installed == pyproject()["version"]
