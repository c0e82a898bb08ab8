"""The exactness matrix: its closed forms, its pass and fail, and the table that it prints."""

from __future__ import annotations

import pytest
import torch

from fmtt.evaluation import certify_matrix as matrix
from fmtt.evaluation import certify_problems as problems
from fmtt.evaluation.certify_matrix import Cell, CellResult, Size

SMALL = Size(150, 16, 1000, 48, 40_000, False)


@pytest.mark.parametrize("name", problems.REWARDS)
@pytest.mark.parametrize("d", problems.DIMENSIONS)
def test_the_closed_forms_agree_with_reweighted_draws(d, name):
    x = problems.ProductMixture(d).oracle().sample(100_000, torch.Generator().manual_seed(0))
    w = problems.reward(name, d)(x).exp()
    known, values = problems.truth(name, d), problems.statistics(x)
    mean = (w[:, None] * values).sum(0) / w.sum()
    error = (w[:, None] * (values - mean)).square().sum(0).sqrt() / w.sum()
    assert ((mean - known.tilted[:2]).abs() < 4 * error).all()
    log_z_error = float(w.std() / len(w) ** 0.5 / w.mean())
    assert abs(float(w.mean().log() - known.tilted[2])) < 4 * log_z_error
    assert (mean - known.untilted[:2]).abs().min() > 20 * error.max(), "the tilt must show"


def test_the_rewards_are_what_they_are_called():
    x = torch.linspace(-2.5, 2.5, 501, dtype=torch.float64)[:, None]
    bends = {name: problems.reward(name, 1)(x).diff().diff() for name in problems.REWARDS}
    assert bends["linear"].abs().max() < 1e-12
    assert bends["quadratic"].std() < 1e-12 and bends["quadratic"].mean() < -1e-6
    slope = problems.reward("multimodal", 1)(x).diff().sign()
    assert int((slope.diff() < 0).sum()) == 3, "three maxima"


def test_the_exact_map_carries_the_law_and_the_wrong_one_is_the_identity_at_the_end():
    law, oracle = problems.ProductMixture(2), problems.ProductMixture(2).oracle()
    x = oracle.sample(200, torch.Generator().manual_seed(0), 0.4)
    assert torch.allclose(law.velocity(x, 0.4), oracle.velocity(x, 0.4), atol=1e-10)
    line = problems.ProductMixture(1)  # in one dimension the ODE's map is the monotone coupling
    y = x[:, :1]
    assert torch.allclose(line(y, 0.4, 0.9), line.oracle()(y, 0.4, 0.9), atol=1e-5)
    wrong = problems.WrongMap(2)
    assert torch.allclose(wrong(x, 1.0, 1.0), x, atol=1e-9)
    assert (wrong(x, 0.0, 1.0) - law(x, 0.0, 1.0)).abs().max() > 0.3


def test_every_combination_is_a_cell():
    cells = matrix.cells(matrix.QUICK)
    crossed = {(c.lookahead, c.weights, c.resample) for c in cells if c.weights != "paper"}
    for lookahead in matrix.LOOKAHEADS:
        for weights in ("exact", "path"):
            assert {(lookahead, weights, "systematic"), (lookahead, weights, "none")} <= crossed
    assert len(cells) == len(set(cells)) and {c.schedule for c in cells} == set(matrix.SCHEDULES)
    full = matrix.cells(matrix.FULL)
    assert {(c.dimension, c.reward) for c in full} == {
        (d, r) for d in problems.DIMENSIONS for r in problems.REWARDS
    }
    assert matrix.QUICK.populations >= 16 and matrix.FULL.populations >= 16


CELLS = [
    Cell(1, "linear", "wrong_map", "exact", "systematic"),
    Cell(1, "quadratic", "denoiser", "exact", "none"),
    Cell(1, "multimodal", "wrong_map", "path", "systematic"),
    Cell(2, "quadratic", "euler", "path", "none"),
    Cell(1, "linear", "wrong_map", "paper", "systematic"),
]


def test_a_few_cells_hold_and_a_known_bias_is_caught():
    found = matrix.run(SMALL, only=CELLS)
    assert all(cell.passed for cell in found), matrix.text(found)
    assert [cell.cell for cell in found] == CELLS
    assert max(found[-1].deviation) > 4 and not found[-1].cell.claims_exact


def test_a_wrong_formula_fails_the_cell_that_claims_exactness(monkeypatch):
    """The paper's weights under the name of the exact ones."""
    cell, tilt = CELLS[0], matrix.tilt
    monkeypatch.setattr(matrix, "tilt", lambda *a, **k: tilt(*a, **{**k, "weights": "paper"}))
    found = matrix.run(SMALL._replace(particles=1000), only=[cell])
    assert not found[0].passed and matrix.rows(found)[0][-1] == "FAILED"


def result(deviation: float, weights: str = "exact") -> CellResult:
    cell = Cell(1, "linear", "wrong_map", weights, "none")
    return CellResult(cell, (1.0,) * 3, (0.01,) * 3, (1.0,) * 3, (0.0,) * 3, (0.0, deviation, 0.0))


def test_the_table_says_what_holds():
    found = [result(1.0), result(4.5), result(9.0, "paper"), result(2.0, "paper")]
    assert [cell.passed for cell in found] == [True, False, True, False]
    lines = matrix.text(found).splitlines()
    assert lines[0].split()[:4] == ["d", "reward", "look-ahead", "weights"]
    assert [line.split("SE  ")[1].strip() for line in lines[2:6]] == [
        "exact",
        "FAILED",
        "bias caught",
        "BIAS MISSED",
    ]
    assert "1 of 2 cells that claim exactness" in lines[-1] and "1 of 2 known biases" in lines[-1]
    assert "largest of 6: 4.5" in lines[-1]


@pytest.mark.parametrize("weights", ("exact", "paper"))
@pytest.mark.parametrize("k", range(3))
def test_a_cell_that_sees_nothing_does_not_pass(weights, k):
    fine = result(1.0 if weights == "exact" else 9.0, weights)
    assert fine.passed
    nan = tuple(float("nan") if j == k else value for j, value in enumerate(fine.deviation))
    assert not fine._replace(deviation=nan).passed
    assert not fine._replace(standard_error=(0.01, 0.03, 0.01)).passed


def test_pooling_recovers_the_mean_of_unequal_populations():
    log_z = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    values = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    estimate, error = matrix.pooled(values, log_z)
    z = log_z.exp()
    assert float(estimate[0]) == pytest.approx(float((z * values[:, 0]).sum() / z.sum()))
    assert float(estimate[1]) == pytest.approx(float(z.mean().log())) and bool((error > 0).all())


@pytest.mark.slow
def test_the_quick_matrix_holds():
    found = matrix.run(matrix.QUICK)
    assert all(cell.passed for cell in found), matrix.text(found)


@pytest.mark.parametrize("kind", (problems.ProductMixture, problems.WrongMap))
def test_two_derivatives_of_the_maps_are_right(kind):
    """Weights with a Laplacian differentiate the map twice."""
    flow, x, e = kind(1), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], 1e-5

    def slope(x: torch.Tensor, *, again: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        return x, torch.autograd.grad(flow(x, 0.4, 1.0).sum(), x, create_graph=again)[0]

    at, first = slope(x, again=True)
    (second,) = torch.autograd.grad(first.sum(), at)
    difference = (slope(x + e)[1] - slope(x - e)[1]) / (2 * e)
    torch.testing.assert_close(second, difference, rtol=1e-4, atol=1e-5)
    near = (flow(x + e, 0.4, 1.0) - flow(x - e, 0.4, 1.0)) / (2 * e)
    torch.testing.assert_close(first.detach(), near, rtol=1e-4, atol=1e-6)
