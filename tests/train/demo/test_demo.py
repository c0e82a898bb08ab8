"""The whole demo at a toy budget: what it writes, that it continues, that it ends early when done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fmtt.errors import UserError
from train.demo import demo as program
from train.demo import exact, hit_rate
from train.demo import report as reports
from train.demo.beside import Beside

SUMMARY = {"lookahead", "lookahead_shipped", "tilt", "seconds"}
TILT = {"target", "tolerance_minutes", "budgets", "hit_rate", "mean_reward", "exact"}
METHODS = {"base", "best_of_n", "best_of_n_few_step", "fmtt_denoiser", "fmtt_flow_map"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with toy sizes; returns its output folder."""
    config: Any = OmegaConf.load(program.CONFIG)
    config.max_steps, config.batch_size, config.log.wandb = 4, 4, False
    config.checkpoint.every_steps, config.evaluate.every_steps = 2, 4
    config.evaluate.num_samples, config.evaluate.grid_samples = 2, 2
    OmegaConf.save(config, tmp_path / "demo.yaml")
    monkeypatch.setattr(program, "CONFIG", tmp_path / "demo.yaml")
    monkeypatch.setattr(program, "SHARD_SAMPLES", 64)
    monkeypatch.setattr(program, "LOOKAHEAD_SAMPLES", 2)
    monkeypatch.setattr(
        program, "EXACT", {"num_particles": 4, "num_populations": 2, "base_samples": 16, "sharpness": 0.2}
    )
    monkeypatch.setattr(exact, "STEPS", 4)
    monkeypatch.setattr(program, "PROCESSES", 1)
    monkeypatch.setattr(hit_rate, "RUNS", 2)
    monkeypatch.setattr(hit_rate, "BUDGETS", (100, 150))
    monkeypatch.setattr(hit_rate, "BASE_STEPS", 10)
    monkeypatch.setattr(reports, "PICTURED", 2)
    monkeypatch.setattr(reports, "TILT_PARTICLES", 4)
    return tmp_path / "out"


def test_the_demo_writes_everything_and_a_second_run_reuses_it(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PROCESSES", 2)
    started = []
    start = Beside.start
    monkeypatch.setattr(Beside, "start", lambda self, *a, **k: (started.append(k), start(self, *a, **k)))
    summary = program.demo(small)
    assert started == [{"seed": program.TILT_SEED}]
    assert json.loads((small / "summary.json").read_text()) == summary
    assert set(summary) == SUMMARY
    for key in ("lookahead", "lookahead_shipped"):
        assert set(summary[key]) == {"t", "rmse", "teacher_nfe_matched"}
        assert summary[key]["t"] == [k / 10 for k in range(10)]
        assert set(summary[key]["rmse"]) == {"denoiser", "map_1", "map_2", "map_4"}
        assert all(len(v) == 10 for v in summary[key]["rmse"].values())
    assert set(summary["tilt"]) == TILT
    assert set(summary["tilt"]["hit_rate"]) == set(summary["tilt"]["mean_reward"]) == METHODS
    assert set(summary["tilt"]["exact"]) == {"kl_to_base_law", "kl_to_closed_form", "noise_floor", "ess"}
    assert set(summary["seconds"]) == {"data", "map", "export", "evaluate", "tilt", "report"}
    for name in ("map/config.yaml", "map/metrics.csv", "export/config.json", "evaluate/summary.json"):
        assert (small / name).is_file()
    page = (small / "report.html").read_text()
    assert page.count("data:image/png") >= 9
    assert "http" not in page.replace("http://www.w3.org", "")

    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in (small / "map").rglob("*") if p.is_file()}
    assert program.demo(small)["tilt"] == summary["tilt"]
    assert capsys.readouterr().out.count("done earlier") == 6
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())


def test_an_interrupted_demo_continues_where_it_was(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: Path) -> dict[str, Any]:
        (out / "evaluate" / "half.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            program.demo(small)
    weights = (small / "export" / "model.safetensors").read_bytes()
    program.demo(small)
    assert not (small / "evaluate" / "half.json").exists()
    assert (small / "export" / "model.safetensors").read_bytes() == weights


def test_fresh_deletes_what_an_earlier_demo_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".stages", "map"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    (tmp_path / "report.html").write_text("old")
    program._clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_one_clear_line(small: Path) -> None:
    small.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to --out .*out: Not a directory; choose another"):
        program.demo(small)


def test_a_folder_that_the_demo_did_not_make_is_not_deleted(small: Path) -> None:
    small.mkdir()
    (small / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not made by the demo"):
        program.demo(small, fresh=True)
    assert (small / "thesis.tex").is_file()
