"""Times: their shares, order and law, and that no rank and no step repeats another's."""

from __future__ import annotations

import pytest
import torch

from fmtt.errors import UserError
from train.build import build_module
from train.module import FlowMapModule
from train.times import DISTRIBUTIONS, MIDPOINTS, TimeSampler, from_density

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


def test_a_share_is_whole_trajectories(generator):
    s, _, t = TimeSampler("ayf", whole=0.4, endpoint=0.2, diagonal=0.3).sample(N, generator)
    for share, hits in ((0.4, (s == 0) & (t == 1)), (0.2, (s > 0) & (t == 1)), (0.3, s == t)):
        assert float(hits.float().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / N) ** 0.5)


def test_ayf_draws_the_gap(generator):
    s, _, t = TimeSampler("ayf", mean=-0.6, std=0.8).sample(N, generator)
    gap = (t - s).double()
    z = torch.logit(gap)
    assert float(z.mean()) == pytest.approx(-0.6, abs=4 * 0.8 / N**0.5)
    assert float(z.std()) == pytest.approx(0.8, abs=4 * 0.8 / (2 * N) ** 0.5)
    place = s / (1 - gap)  # uniform, and independent of the gap
    assert float(place.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / N) ** 0.5)
    assert abs(float(torch.corrcoef(torch.stack([place, z]))[0, 1])) < 4 / N**0.5
    s, _, t = TimeSampler("ayf", diagonal=1.0).sample(N, generator)
    assert torch.equal(s, t) and float(s.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / N) ** 0.5)


DENSITY = (0.0, 3.0, 1.0, 4.0)


def shares(s: torch.Tensor) -> list[float]:
    return (torch.bincount((s * 4).long().clamp_max(3), minlength=4) / len(s)).tolist()


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_lookahead_has_the_density_that_is_given(diagonal, generator):
    sampler = TimeSampler("lookahead", endpoint=0.6 * (1 - diagonal), diagonal=diagonal, s_density=DENSITY)
    s, _, t = sampler.sample(N, generator)
    for share, weight in zip(shares(s), DENSITY, strict=True):
        p = weight / sum(DENSITY)
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / N) ** 0.5)
    inside = (s[s >= 0.75] - 0.75) / 0.25  # uniform within a part
    assert float(inside.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / len(inside)) ** 0.5)
    if diagonal == 0:
        assert float((t == 1).float().mean()) == pytest.approx(0.6, abs=4 * (0.24 / N) ** 0.5)
        place = ((t - s) / (1 - s))[t < 1]
        assert float(place.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / len(place)) ** 0.5)
    wrong, _, _ = sampler._replace(s_density=DENSITY[::-1]).sample(N, generator)
    assert abs(shares(wrong)[0] - 0.0) > 4 * (0.25 / N) ** 0.5


def test_quantiles_of_a_density():
    ranks = torch.tensor([0.0, 0.1875, 0.375, 0.5, 0.75, 1.0])
    expected = torch.tensor([0.25, 0.375, 0.5, 0.75, 0.875, 1.0])
    torch.testing.assert_close(from_density(ranks, DENSITY), expected)
    torch.testing.assert_close(from_density(ranks, [7.0]), ranks)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_curriculum_shortens_every_gap_and_ends(distribution):
    full = TimeSampler(distribution, diagonal=0.2, endpoint=0.3)
    growing = full._replace(gap_start=0.1, gap_steps=100)
    for step, largest in ((0, 0.1), (50, 0.55), (100, 1.0), (1000, 1.0)):
        a, b = (
            sampler.sample(2000, torch.Generator().manual_seed(7), step=step) for sampler in (full, growing)
        )
        assert growing.largest_gap(step) == pytest.approx(largest)
        torch.testing.assert_close(b.t - b.s, largest * (a.t - a.s), atol=2e-7, rtol=1e-6)
        assert torch.equal(a.s, b.s) and float((b.t - b.s).max()) <= largest + 1e-6
        assert ((b.s <= b.u) & (b.u <= b.t) & (b.t <= 1)).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_same_generator_gives_the_same_times(distribution):
    sampler = TimeSampler(distribution, diagonal=0.2, endpoint=0.3, midpoint="uniform")
    one, two, other = (sampler.sample(64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and not torch.equal(one.s, other.s)


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["times.s_density=[]"], "times.s_density needs weights of which none is negative"),
        (["times.s_density=[1,-1]"], "times.s_density needs weights"),
        (["times.s_density=[0,0]"], "times.s_density needs weights"),
        (["times.distribution=lookahead"], "times.endpoint must be positive for lookahead"),
        (["times.gap_start=0"], "times.gap_start must lie in (0, 1]"),
        (["times.gap_steps=-1"], "times.gap_steps must be at least 0"),
        (["times.gap_start=0.5"], "times.gap_steps must be positive where"),
        (["times.whole=1.5"], "times.whole must lie in [0, 1]"),
        (["times.whole=0.5", "times.endpoint=0.6"], "times.diagonal + times.endpoint + times.whole must"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_wrong_settings_are_named_in_one_line(overrides, says, toy):
    with pytest.raises(UserError) as caught:
        toy(*overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


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
