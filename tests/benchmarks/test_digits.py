"""The digits' benchmark at a reduced budget: every stage runs, and its estimates agree with its truth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("lightning")

from data import digits_classifier
from tests.benchmarks import digits

QUICK = ("max_steps=60", "log.every_steps=60", "evaluate.num_samples=0", "evaluate.every_steps=60")


@pytest.mark.slow
def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(digits_classifier, "STEPS", 200)
    size = digits.Size(QUICK, base=1000, particles=16, populations=8)
    summary = digits.benchmark(tmp_path, size)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    rows = {(row["lookahead"], row["weights"]): row for row in summary["rows"]}
    truth = summary["truth"]
    # Path weights are exact for the law that the truth is drawn from, however little was trained: the mean of
    # Z is the truth's, and that of log Z lower by half its variance.
    row = rows["flow_map", "path"]
    value, error = row["log_z"]
    bias = error**2 * size.populations / 2
    assert abs(value - truth["log_z"]) < 4 * math.hypot(error, truth["effective_samples"] ** -0.5) + bias
    assert all(figure > 0 for row in rows.values() for figure in (row["length"][0], row["discrepancy"][0]))
    assert len(digits.table(summary).splitlines()) == 2 + len(rows) == 8
    capsys.readouterr()
    digits.benchmark(tmp_path, size)
    assert capsys.readouterr().out.count("done earlier") == 3


def test_a_column_is_decided_population_by_population() -> None:
    """Populations differ by far more than the look-aheads do, and one is wild."""
    spread = torch.linspace(0, 50, 40, dtype=torch.float64)
    noise = torch.where(torch.arange(40) % 2 == 0, 0.1, -0.1).double()

    def outcomes(shift: float) -> dict[tuple[str, str], tuple[str, bool]]:
        own = spread + shift + noise
        own[7] = 1e6
        others = dict.fromkeys(("none", "denoiser"), {"length": spread, "mmd": spread})
        found = digits.contests({"flow_map": {"length": own, "mmd": own}, **others})
        return {(c["column"], c["against"]): (c["outcome"], c["failed"]) for c in found}

    nearer, farther, same = outcomes(-1), outcomes(1), outcomes(0)
    assert len(nearer) == 4 and set(nearer.values()) == {("won", False)}
    assert set(farther.values()) == {("lost", True)}
    assert same["mmd", "none"] == ("level", False) and same["length", "none"] == ("level", True)
