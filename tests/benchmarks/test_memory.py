"""The counted memory: live bytes are what they should be, and the documented table is what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from tests.benchmarks.memory import MODELS, Live, count

README = Path(__file__).resolve().parents[2] / "configs" / "README.md"


def test_live_bytes_of_a_small_step():
    """x (1000) -> exp -> exp, both kept for the reverse pass, and one gradient after the other."""
    x = torch.empty(1000, device="meta", requires_grad=True)
    live = Live()
    with live:
        y = x.exp()
        z = y.exp()
        assert live.now == 8000
        view = z.view(10, 100)
        assert live.now == 8000 and view.shape == (10, 100), "a view takes nothing"
        del view
        total = z.sum()
        assert live.now == 8004
        del y, z
        assert live.now == 8004, "the graph keeps them"
        total.backward()
        del total
    assert x.grad is not None and live.now == x.grad.nbytes == 4000
    assert 12000 <= live.peak <= 16008


def documented() -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_documented_weights_are_those_counted(name: str):
    assert documented()[name][:4] == [f"{value:.3g}" for value in count(name, steps=()).values()]
