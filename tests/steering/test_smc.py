"""Weights, effective sample size and systematic resampling."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fmtt.steering import smc
from fmtt.steering.dynamics import Evaluation
from fmtt.steering.sampler import Particles


def test_counts_are_within_one_of_the_expected(generator: torch.Generator) -> None:
    log_weights = torch.randn(6, 1000, generator=generator, dtype=torch.float64) * 2
    ancestors = smc.systematic(log_weights, generator)
    expected = torch.softmax(log_weights, 1) * 1000
    counts = torch.stack([torch.bincount(row, minlength=1000) for row in ancestors])
    assert (counts >= expected.floor()).all() and (counts <= expected.ceil()).all()
    assert (ancestors.diff(dim=1) >= 0).all()


def test_resampling_is_unbiased(generator: torch.Generator) -> None:
    log_weights = torch.randn(1, 8, generator=generator, dtype=torch.float64).expand(40_000, 8)
    counts = torch.nn.functional.one_hot(smc.systematic(log_weights, generator), 8).sum(1).double()
    expected = torch.softmax(log_weights[0], 0) * 8
    assert ((counts.mean(0) - expected).abs() < 4 * counts.std(0) / 200 + 1e-12).all()


def test_equal_weights_keep_everyone_even_in_large_populations(generator: torch.Generator) -> None:
    ancestors = smc.systematic(torch.zeros(1, 1_000_000, dtype=torch.float64), generator)
    assert (ancestors[0] - torch.arange(1_000_000)).abs().max() <= 1
    float32 = smc.systematic(torch.zeros(1, 1_000_000), generator)
    assert (float32[0] - torch.arange(1_000_000)).abs().max() <= 1


@pytest.mark.parametrize("alive", ([0], [3], [1, 4]))
def test_weightless_particles_have_no_descendants(generator: torch.Generator, alive: list[int]) -> None:
    log_weights = torch.full((50, 5), -torch.inf, dtype=torch.float64)
    log_weights[:, alive] = 3.0
    assert set(smc.systematic(log_weights, generator).unique().tolist()) == set(alive)


def test_one_uniform_per_population_and_the_seed_decides() -> None:
    log_weights = torch.randn(3, 9, dtype=torch.float64)
    a, b = (smc.systematic(log_weights, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b)
    assert smc.systematic(log_weights, count=20).shape == (3, 20)


def test_ess_and_log_mean_exp() -> None:
    log_weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e3, -1e3, -1e3, -1e3]], dtype=torch.float64)
    torch.testing.assert_close(smc.ess_fraction(log_weights), torch.tensor([1.0, 0.25]).double())
    expected = torch.tensor([0.0, 1e3]).double() - torch.tensor([1.0, 4.0]).double().log()
    torch.testing.assert_close(smc.log_mean_exp(log_weights), expected)


def test_increment_statistics_are_weighted(generator: torch.Generator) -> None:
    log_weights, increments = torch.randn(2, 3, 500, generator=generator, dtype=torch.float64)
    p, w = torch.softmax(log_weights, 1), increments.exp()
    mean = (p * increments).sum(1)
    found = smc.increment_statistics(log_weights, increments)
    torch.testing.assert_close(found.work_variance, (p * increments.square()).sum(1) - mean.square())
    q = torch.softmax(log_weights + increments, 1)
    after = (q * increments.square()).sum(1) - (q * increments).sum(1).square()
    torch.testing.assert_close(found.length, (found.work_variance.sqrt() + after.sqrt()) / 2)
    expected = (p * w.square()).sum(1).log() - 2 * (p * w).sum(1).log()
    torch.testing.assert_close(found.discrepancy, expected)


def test_every_tensor_of_a_particle_is_gathered() -> None:
    """Fields are filled by reflection, so that a field added later is covered."""
    n, index = 6, torch.tensor([5, 0, 0, 3, 3, 1])

    def filled(kind: type) -> NamedTuple:
        fields = {name: torch.arange(n) for name in kind._fields}  # type: ignore[attr-defined]
        return kind(**fields)

    particles = filled(Particles)._replace(evaluation=filled(Evaluation))  # type: ignore[attr-defined]
    moved = smc.gather(particles, index)

    def leaves(value: tuple) -> list[Tensor]:
        return [leaf for v in value for leaf in (leaves(v) if isinstance(v, tuple) else [v])]

    assert len(leaves(moved)) == len(Particles._fields) + len(Evaluation._fields) - 1
    assert all(torch.equal(leaf, index) for leaf in leaves(moved))


def test_absent_fields_stay_absent() -> None:
    assert smc.gather(Evaluation(value=torch.arange(3)), torch.tensor([2, 2])).gradient is None


def test_flat_index_stays_within_populations() -> None:
    ancestors = torch.tensor([[0, 2, 2], [1, 1, 0]])
    assert smc.flat_index(ancestors, 3).tolist() == [0, 2, 2, 4, 4, 3]
