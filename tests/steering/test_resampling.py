"""Resampling schemes: unbiased, ordered by variance, whole or in part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.steering import resampling, smc

RUNS = 20_000


def weights(seed: int = 0, n: int = 10) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(1, n, generator=draws, dtype=torch.float64)


def counts(name: str, log_weights: Tensor, runs: int = RUNS, count: int | None = None) -> Tensor:
    """Descendants (runs, N) in independent runs."""
    draws = torch.Generator().manual_seed(1)
    ancestors = resampling.SCHEMES[name](log_weights.expand(runs, -1), draws, count)
    assert (ancestors.diff(dim=1) >= 0).all()
    return torch.nn.functional.one_hot(ancestors, log_weights.shape[1]).sum(1).double()


def within_four(found: Tensor, expected: Tensor) -> bool:
    return bool(((found.mean(0) - expected).abs() < 4 * found.std(0) / len(found) ** 0.5 + 1e-9).all())


@pytest.mark.parametrize("count", (None, 7))
@pytest.mark.parametrize("name", resampling.SCHEMES)
def test_every_scheme_is_unbiased(name: str, count: int | None) -> None:
    expected = torch.softmax(weights()[0], 0) * (count or 10)
    found = counts(name, weights(), count=count)
    assert (found.sum(1) == (count or 10)).all() and within_four(found, expected)


def test_the_check_sees_a_biased_scheme() -> None:
    """Rounding expected numbers is not resampling; nor is a weight off by 3 %."""
    expected = torch.softmax(weights()[0], 0) * 10
    assert not within_four(counts("multinomial", weights() * 1.03), expected)
    assert not within_four(counts("ssp", weights() * 1.03), expected)


def test_no_scheme_is_as_noisy_as_multinomial() -> None:
    """Of an estimate of a mean over sorted particles."""
    log_weights, f = weights(3, 12), torch.linspace(-1, 1, 12, dtype=torch.float64)
    variance = {name: float((counts(name, log_weights, 4000) @ f).var()) for name in resampling.SCHEMES}
    for better, worse in (
        ("residual", "multinomial"),
        ("stratified", "multinomial"),
        ("ssp", "residual"),
        ("systematic", "multinomial"),
    ):
        assert variance[worse] > 1.1 * variance[better], (worse, better)
    expected = torch.softmax(log_weights[0], 0) * 12
    for name in ("systematic", "ssp"):
        assert ((counts(name, log_weights, 500) - expected).abs() < 1).all()


@pytest.mark.parametrize("name", resampling.SCHEMES)
def test_equal_weights_and_dead_particles(name: str) -> None:
    scheme, draws = resampling.SCHEMES[name], torch.Generator().manual_seed(0)
    if name not in ("multinomial", "stratified"):
        assert torch.equal(scheme(torch.zeros(2, 9), draws, None), torch.arange(9).expand(2, 9))
    dead = torch.full((50, 5), -torch.inf, dtype=torch.float64)
    dead[:, [1, 4]] = 3.0
    assert set(scheme(dead, draws, None).unique().tolist()) == {1, 4}


@pytest.mark.parametrize("name", resampling.SCHEMES)
def test_the_generator_decides(name: str) -> None:
    a, b, c = (
        resampling.SCHEMES[name](weights(2, 40), torch.Generator().manual_seed(s), None) for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("share", (0.25, 0.5, 1.0))
@pytest.mark.parametrize("name", resampling.SCHEMES)
def test_partial_resampling_keeps_every_weighted_sum_on_average(name: str, share: float) -> None:
    """The part between the lightest and the heaviest keeps its place and its weights."""
    log_weights, draws = weights(4), torch.Generator().manual_seed(5)
    found = resampling.resample(name, log_weights.expand(RUNS, -1), draws, share)
    torch.testing.assert_close(smc.log_mean_exp(found.log_weights), torch.zeros(RUNS).double())
    carried = torch.zeros(RUNS, 10, dtype=torch.float64).scatter_add(
        1, found.ancestors, found.log_weights.exp()
    )
    assert within_four(carried, torch.softmax(log_weights[0], 0) * 10)
    stays = log_weights[0].argsort()[round(10 * share) // 2 : 10 - round(10 * share) + round(10 * share) // 2]
    assert (found.ancestors[:, stays] == stays).all()
    if share == 1.0:
        assert not found.log_weights.any()


def test_unknown_schemes_are_named() -> None:
    with pytest.raises(UserError, match="ssp"):
        resampling.resample("sometimes", weights())
