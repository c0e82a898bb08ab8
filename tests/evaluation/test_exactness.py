"""Histograms, divergences and their noise floors against known values."""

from __future__ import annotations

import math

import pytest
import torch

from fmtt.errors import UserError
from fmtt.evaluation import exactness
from fmtt.rewards import clock
from fmtt.rewards.clock_reward import ClockReward, tilted_time_density


def test_weighted_histogram_counts_weights():
    values = torch.tensor([0.0, 0.2, 0.5, 1.0])
    log_weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).log() + 700  # a constant that would overflow exp
    histogram = exactness.weighted_histogram(values, log_weights, 2, (0.0, 1.0))
    assert torch.allclose(histogram, torch.tensor([0.3, 0.7]).double())
    flat = exactness.weighted_histogram(values, None, 2, (0.0, 1.0))
    assert torch.allclose(flat, torch.tensor([0.5, 0.5]).double())


@pytest.mark.parametrize("bad", [torch.tensor([1.5]), torch.tensor([math.nan]), torch.zeros(0)])
def test_values_outside_the_range_are_refused(bad):
    with pytest.raises(UserError):
        exactness.weighted_histogram(bad, None, 2, (0.0, 1.0))


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(UserError, match="log-weights"):
        exactness.weighted_histogram(torch.tensor([0.5]), torch.tensor([-math.inf]), 2, (0.0, 1.0))


def test_kl_and_total_variation_of_known_laws():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert float(exactness.kl(p, q)) == pytest.approx(0.5 * math.log(2))
    assert float(exactness.kl(q, p)) == math.inf
    assert float(exactness.kl(p, p)) == 0
    assert float(exactness.total_variation(p, q)) == pytest.approx(0.25)
    mixed = 0.9 * p + 0.1 / 3
    assert float(exactness.kl(q, p, smoothing=0.1)) == pytest.approx(float((q * (q / mixed).log()).sum()))


def test_effective_size():
    assert exactness.effective_size(torch.zeros(7)) == pytest.approx(7)
    assert exactness.effective_size(torch.tensor([0.0, -math.inf])) == pytest.approx(1)


def test_multinomial_has_the_right_mean_and_covariance():
    q = torch.tensor([0.2, 0.0, 0.5, 0.3]).double()
    draws = exactness.multinomial_histograms(q, 50, 20_000, torch.Generator().manual_seed(0))
    assert torch.allclose(draws.sum(1), torch.ones(20_000).double())
    assert torch.allclose(draws.mean(0), q, atol=4 * 0.5 / math.sqrt(50 * 20_000))
    expected = (torch.diag(q) - torch.outer(q, q)) / 50
    assert torch.allclose(torch.cov(draws.T), expected, atol=2e-4)


def test_noise_floor_of_a_fair_coin_is_exact():
    n = 3  # heads 0..3 with probabilities 1, 3, 3, 1 over 8
    uneven = math.log(2) + (1 / 3) * math.log(1 / 3) + (2 / 3) * math.log(2 / 3)
    expected = (2 * math.log(2) + 6 * uneven) / 8
    floor = exactness.noise_floor(
        torch.tensor([0.5, 0.5]), n, num_draws=200_000, generator=torch.Generator().manual_seed(1)
    )
    assert floor == pytest.approx(expected, abs=0.003)


def test_noise_floor_tends_to_half_the_degrees_of_freedom_over_n():
    q = torch.softmax(torch.arange(24).double() / 12, 0)
    generator = torch.Generator().manual_seed(2)
    floor = exactness.noise_floor(q, 5000, generator=generator)
    assert floor == pytest.approx(23 / (2 * 5000), rel=0.05)
    both = exactness.noise_floor(q, 5000, reference_size=5000, generator=generator)
    assert both == pytest.approx(2 * floor, rel=0.1)


def test_clock_histogram_reads_rendered_clocks():
    times = torch.tensor([15.0, 45.0, 45.0, 700.0])
    generator = torch.Generator().manual_seed(0)
    images = clock.render(clock.Clock(times, torch.rand(4, clock.NUM_SHADES, generator=generator)))
    junk = torch.zeros(1, *clock.DATA_SHAPE)
    result = exactness.clock_histogram(torch.cat([images, junk]))
    expected = torch.zeros(24).double()
    expected[[0, 1, 23]] = torch.tensor([0.25, 0.5, 0.25]).double()
    assert torch.allclose(result.probabilities, expected)
    assert result.readable == pytest.approx(0.8)
    with pytest.raises(UserError, match="none of the images"):
        exactness.clock_histogram(junk)


def test_clock_density_histogram_bins_the_closed_form():
    reward = ClockReward("3:47", 10.0)
    histogram = exactness.clock_density_histogram(*tilted_time_density(reward, shades=2))
    assert float(histogram.sum()) == pytest.approx(1)
    assert int(histogram.argmax()) == 7  # 3:30 to 4:00
