"""Principal components are found before training, kept when it is continued, and passed on to a student."""

from pathlib import Path

import pytest
import torch

import train.principal
from data.__main__ import main as write_main
from fmtt.models.checkpoint import load
from fmtt.models.principal import PrincipalEmbedding
from tests.train.conftest import PRETRAIN
from train.__main__ import main

RANK = 4


@pytest.fixture
def clock_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy run on clocks whose network sees RANK components."""
    monkeypatch.setattr(train.principal, "NUM_SAMPLES", 64)
    student = f"{{network: dit, args: {{patch: 16, dim: 16, depth: 1, heads: 2, principal: {RANK}}}}}"
    text = PRETRAIN.replace("{network: mlp, args: {width: 16, depth: 1}}", student)
    path = tmp_path / "clock.yaml"
    path.write_text(
        text.replace("source: mixture", "source: clock").replace("batch_size: 16", "batch_size: 2")
    )
    return path


def basis(run: Path, export: Path) -> torch.Tensor:
    """The components in the export of a run."""
    assert main(["export", str(run), str(export)]) == 0
    layer = load(export).network.get_submodule("embed")
    assert isinstance(layer, PrincipalEmbedding)
    return layer.basis.float()


def test_a_velocity_model_finds_them_and_its_student_keeps_them(clock_yaml: Path, tmp_path: Path) -> None:
    run = [f"run_dir={tmp_path / 'run'}", "evaluate.every_steps=100"]
    assert main(["pretrain", str(clock_yaml), *run, "max_steps=2"]) == 0
    found = basis(tmp_path / "run", tmp_path / "teacher")
    assert torch.allclose(found @ found.T, torch.eye(RANK), atol=1e-3)
    assert main(["pretrain", str(clock_yaml), *run, "max_steps=4"]) == 0
    assert torch.equal(basis(tmp_path / "run", tmp_path / "continued"), found)
    student = [f"run_dir={tmp_path / 'map'}", "evaluate.every_steps=100", f"teacher={tmp_path / 'teacher'}"]
    assert main(["distill", str(clock_yaml), *student, "objective.name=lmd", "max_steps=2", "seed=9"]) == 0
    assert torch.equal(basis(tmp_path / "map", tmp_path / "mapped"), found)


def test_more_components_than_samples(
    clock_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_main(["write", "clock", "--out", str(tmp_path / "few"), "--num-samples", "3"]) == 0
    capsys.readouterr()
    settings = [f"data.source={tmp_path / 'few'}", f"run_dir={tmp_path / 'run'}"]
    assert main(["pretrain", str(clock_yaml), *settings]) == 2
    message = capsys.readouterr().err
    assert "student.args.principal: 3 samples do not have 4 principal components" in message
    assert message.count("\n") == 1
