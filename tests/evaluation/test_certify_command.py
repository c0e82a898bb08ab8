"""``fmtt certify`` on the shipped map at tiny sizes, and its matrix alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmtt.__main__ import main
from fmtt.cli import certify as command
from fmtt.evaluation import certify_matrix
from fmtt.evaluation.certify_matrix import Cell, CellResult

TINY = ("--num-samples", "4", "--num-particles", "2", "--num-steps", "3", "--matrix", "none")


def run(*args: str | Path) -> int:
    return main([str(arg) for arg in args])


def result(deviation: float) -> CellResult:
    cell = Cell(1, "linear", "wrong_map", "exact", "none")
    return CellResult(cell, (1.0,) * 3, (0.01,) * 3, (1.0,) * 3, (0.0,) * 3, (deviation,) * 3)


def test_certify_the_shipped_map(tmp_path, capsys):
    out = tmp_path / "certificate"
    reward = ("--reward", "clock:time=3:47,sharpness=2")
    assert run("certify", "clock-map", "--teacher", "clock-teacher", *reward, *TINY, "--out", out) == 0
    pictures = {"residuals.png", "ascent.png", "mismatch.png", "paper_bias.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"report.html", "summary.json"}
    said = json.loads((out / "summary.json").read_text())
    assert said["reference"] == "teacher" and said["reward"] == "clock:time=3:47,sharpness=2"
    assert said["verdict"]["weights"] in ("exact", "path") and said["verdict"]["reason"]
    assert said["residuals"]["dtype"] == "float32" and len(said["residuals"]["eulerian"]) == 5
    assert 0 < said["residuals"]["semigroup"][0][0] < 0.5
    assert said["ascent"]["cosine"].keys() == {"none", "denoiser", "map_1", "map_2", "map_4"}
    assert len(said["mismatch"]["drift"]) == 2 and said["mismatch"]["steps"] == [3, 6]
    assert said["matrix"] == [] and said["matrix_holds"] is None
    page = (out / "report.html").read_text()
    assert "http" not in page and "Is the map a flow map?" in page
    assert f"use weights={said['verdict']['weights']!r}" in capsys.readouterr().out


def test_the_matrix_alone_is_a_plain_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(certify_matrix, "run", lambda *_, **__: [result(1.0)])
    assert run("certify", "--matrix-only") == 0
    printed = capsys.readouterr().out
    assert "wrong_map" in printed and "1 of 1 cells that claim exactness" in printed
    assert run("certify", "--matrix-only", "--out", tmp_path) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["matrix_holds"] is True


def test_a_matrix_that_does_not_hold_has_status_1(monkeypatch, capsys):
    monkeypatch.setattr(certify_matrix, "run", lambda *_, **__: [result(5.0)])
    with pytest.raises(SystemExit) as stopped:
        run("certify", "--matrix-only")
    assert stopped.value.code == 1 and "FAILED" in capsys.readouterr().out


def test_quick_means_small_and_without_matrix():
    assert all(quick < whole for whole, quick in command.SIZES.values())


@pytest.mark.parametrize(
    "line, says",
    [
        ("certify", "certify needs an export, or --matrix-only"),
        ("certify clock-map", "certify needs --out DIR"),
        ("certify clock-map --matrix big --out OUT", "--matrix: 'big' is not one of quick, full, none"),
        ("certify --matrix-only --matrix none", "leaves nothing to do"),
        ("certify clock-map --reward clok --out OUT", "did you mean 'clock'"),
        ("certify nowhere --out OUT", "there is no export at nowhere"),
    ],
)
def test_mistakes_are_one_line_and_status_2(line, says, tmp_path, capsys):
    words = [str(tmp_path / "out") if word == "OUT" else word for word in line.split()]
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
