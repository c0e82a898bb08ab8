"""Times: their shares, order and law, and that no rank and no step repeats another's."""

from __future__ import annotations

import pytest
import torch

from train.build import build_module
from train.losses import Times
from train.module import FlowMapModule
from train.times import DISTRIBUTIONS, MIDPOINTS, TimeSampler
from train.weighting import time_left_weight

N = 40_000


@pytest.mark.parametrize("midpoint", MIDPOINTS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_order_and_shares(distribution, midpoint, generator):
    sampler = TimeSampler(distribution, std=2.0, diagonal=0.3, endpoint=0.2, midpoint=midpoint)
    s, u, t = sampler.sample(N, generator)
    assert ((s >= 0) & (s <= u) & (u <= t) & (t <= 1)).all()
    for share, hits in ((0.3, s == t), (0.2, (t == 1) & (s < 1))):
        assert float(hits.float().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / N) ** 0.5)
    between = (s < t) & (t < 1)
    fraction = ((u - s) / (t - s))[between & (t - s > 0.05)]
    spread = 0.0 if midpoint == "middle" else 12**-0.5
    assert float(fraction.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(fraction.std()) == pytest.approx(spread, abs=0.01)


def test_uniform_is_uniform_on_the_triangle_and_on_the_diagonal(generator):
    s, _, t = TimeSampler().sample(N, generator)
    for values, mean in ((s, 1 / 3), (t, 2 / 3)):  # order statistics of two draws: variance 1/18
        assert float(values.mean()) == pytest.approx(mean, abs=4 * (1 / 18 / N) ** 0.5)
    s, _, t = TimeSampler(diagonal=1.0).sample(N, generator)
    assert torch.equal(s, t)
    quantiles = torch.quantile(s, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.25, 0.5, 0.75]), atol=0.012, rtol=0)


def test_logit_normal(generator):
    s, _, t = TimeSampler("logit_normal", mean=-0.4, std=0.7).sample(N, generator)
    z = torch.logit(s.double())
    assert float(z.mean()) == pytest.approx(-0.4, abs=4 * 0.7 / N**0.5)
    assert float(z.std()) == pytest.approx(0.7, abs=0.015)
    assert float(((t - s) / (1 - s)).mean()) == pytest.approx(0.5, abs=0.007)


def test_noise_starts_at_zero(generator):
    s, _, t = TimeSampler("noise").sample(N, generator)
    assert (s == 0).all()
    assert float(t.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / N) ** 0.5)


def test_every_rank_and_step_has_its_own_stream_and_a_step_can_be_had_again(toy, monkeypatch):
    now = {"global_rank": 0, "global_step": 0}
    for name in now:
        monkeypatch.setattr(FlowMapModule, name, property(lambda self, name=name: now[name]))

    def draw(rank: int, step: int, micro_steps: int = 1) -> tuple[float, ...]:
        module = build_module(toy(), "pretrain", (2,))
        now.update(global_rank=rank, global_step=step)
        for _ in range(micro_steps):
            generator = module.step_generator()
        return tuple(torch.rand(4, generator=generator).tolist())

    draws = [draw(rank, step, micro) for rank in (0, 1, 2) for step in (0, 1, 7) for micro in (1, 2)]
    assert len(set(draws)) == len(draws)
    assert draw(1, 7) == draw(1, 7)


def test_weight():
    t = torch.tensor([0.0, 0.5, 0.9, 1.0])
    times = Times(torch.zeros(4), torch.zeros(4), t)
    assert torch.equal(time_left_weight(times, 0.0), torch.ones(4))
    torch.testing.assert_close(time_left_weight(times, 2.0), torch.tensor([1.0, 0.25, 0.01, 0.0004]))
