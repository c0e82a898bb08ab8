"""The toy settings: their law, map and truth against independent computations, and the order they show."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmtt.evaluation import distances, toys, toys_settings
from fmtt.evaluation.toys import Column
from fmtt.evaluation.toys_law import RingLaw
from fmtt.evaluation.toys_settings import BumpReward, RingReward, Toy
from fmtt.steering.tilt import tilt


@pytest.fixture(scope="module")
def law() -> RingLaw:
    """Three wide modes: a small table suffices."""
    angle = torch.arange(3, dtype=torch.float64) * (2 * math.pi / 3)
    return RingLaw(1.5 * torch.stack([angle.cos(), angle.sin()], 1), 0.5, 3, table=(20, 48, 64))


def draw(law: RingLaw, t: float, n: int = 300) -> Tensor:
    return law.oracle().sample(n, torch.Generator().manual_seed(0), t)


@pytest.mark.parametrize("t", (0.0, 0.3, 0.7, 0.99, 1.0))
def test_velocity_and_denoiser_are_the_mixtures(law, t):
    x, oracle = draw(law, t), law.oracle()
    assert torch.allclose(law.velocity(x, t), oracle.velocity(x, t), atol=1e-10)
    assert torch.allclose(law.denoiser(x, t), oracle.denoiser(x, t), atol=1e-10)


@pytest.mark.parametrize("t", (0.0, 0.3, 0.7, 0.99))
def test_the_table_is_the_flow_map(law, t):
    x = draw(law, t)
    error = (law(x, t, 1.0) - law.oracle()(x, t, 1.0)).norm(dim=1)
    assert float(error.square().mean().sqrt()) < 0.02 and float(error.median()) < 2e-3
    assert float(error.max()) < 0.2


def test_the_table_is_the_identity_at_the_end_and_differentiable(law):
    x = draw(law, 1.0, 20)
    assert torch.allclose(law(x, 1.0, 1.0), x, atol=1e-12)
    assert torch.allclose((law(x, 1 - 1e-8, 1.0) - x) / 1e-8, law.velocity(x, 1.0), rtol=0.01, atol=1e-3)
    x = draw(law, 0.5, 20).requires_grad_()
    t = torch.full((20,), 0.5, dtype=torch.float64, requires_grad=True)
    d_x, d_t = torch.autograd.grad(law(x, t, 1.0).sum(), (x, t))
    h = 1e-6
    with torch.no_grad():
        along_t = (law(x, t + h, 1.0) - law(x, t - h, 1.0)).sum(1) / (2 * h)
        step = torch.tensor([h, 0.0], dtype=torch.float64)
        along_x = (law(x + step, t, 1.0) - law(x - step, t, 1.0)).sum(1) / (2 * h)
    assert torch.allclose(d_t, along_t, atol=1e-5) and torch.allclose(d_x[:, 0], along_x, atol=1e-5)
    with pytest.raises(ValueError, match="t = 1 only"):
        law(x, 0.2, 0.5)


def small(law: RingLaw, reward: RingReward | BumpReward) -> Toy:
    return Toy("small", law, reward, 0.5, 0.5, 0.5, ("standing", "weighted"))


@pytest.mark.parametrize("reward", (RingReward(), BumpReward()), ids=lambda r: type(r).__name__)
def test_the_truth_agrees_with_exact_draws(law, reward):
    toy = small(law, reward)
    known = toys_settings.truth(toy)
    generator = torch.Generator().manual_seed(1)
    x = toys_settings.exact_samples(toy, 20_000, generator)
    for found, expected in (((x[:, 0] > 0).double(), known.above), (reward(x) / reward.scale, known.reward)):
        assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(len(x))
    w = reward(law.oracle().sample(50_000, generator)).exp()
    assert abs(float(w.mean().log()) - known.log_z) < 4 * float(w.std() / w.mean()) / math.sqrt(len(w))
    assert float(w.mean().square() / w.square().mean()) == pytest.approx(known.plain_ess, rel=0.05)


def test_the_ring_truth_is_the_closed_form():
    """A mode at y = m < 0 keeps exp(-m² / (1 + 2 v)) / sqrt(1 + 2 v) of its mass, one at 0 half of that."""
    spread = 1 + 2 * 0.55**2
    below = [(2, 0.0, 0.5), (2, 4.8 / math.sqrt(2), 1.0), (1, 4.8, 1.0)]
    left = sum(n * share * math.exp(-(m**2) / spread) / math.sqrt(spread) for n, m, share in below)
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    centres = 4.8 * torch.stack([angle.cos(), angle.sin()], 1)
    law = RingLaw(centres, 0.55, 8, table=(3, 4, 4), steps=2)
    assert toys_settings.truth(small(law, RingReward())).above == pytest.approx(4 / (4 + left), abs=1e-5)


def test_the_curve_and_the_bumps_lie_where_stated():
    curve = toys_settings.cycloid_curve(torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64))
    radius = curve.norm(dim=1)
    assert float(radius.max()) == pytest.approx(1.08, abs=1e-3) and float(radius.min()) > 0.919
    reward = BumpReward()
    assert float(reward(reward.centres).max()) <= reward.upper
    assert float(reward(torch.zeros(1, 2, dtype=torch.float64))) < 1e-3 * reward.upper


def test_a_run_is_measured_against_the_truth(law):
    toy = small(law, RingReward())
    row = toys.run(toy, "flow_map", 20, particles=125, populations=4)
    again = toys.run(toy, "flow_map", 20, particles=125, populations=4)
    floor = toys.floor(toy, particles=125, populations=4)
    known, weighted = toys_settings.truth(toy), row.weighted
    assert row == again and row.lookahead == "flow_map" and row.steps == 20
    assert abs(weighted.above.value - known.above) < 0.1 and abs(weighted.reward.value - known.reward) < 0.1
    assert weighted.above_error.value >= abs(weighted.above.value - known.above)
    assert row.standing.reward != weighted.reward and floor.standing == floor.weighted
    assert abs(floor.weighted.mmd.value) < 0.02 and floor.weighted.sw2.value < 0.5


def test_a_run_is_what_the_toy_asks_for(law, monkeypatch):
    asked, results = [], []

    def noted(*given, **options):
        asked.append([options[name] for name in ("noise", "resample", "ess_threshold")])
        results.append(tilt(*given, **options))
        return results[-1]

    monkeypatch.setattr(toys, "tilt", noted)
    toy = small(law, BumpReward())
    row = toys.run(toy, "none", 4, particles=40, populations=3)
    apart = toys.run(toy._replace(noise=2.0, threshold=0.0), "none", 4, particles=40, populations=3)
    assert asked == [[0.5, "systematic", 0.5], [2.0, "none", 0.0]]
    # In units of the reward's scale, by weight; what stands where it was left counts alike.
    held = results[0]
    assert row.weighted.reward.value == pytest.approx(float(held.expect(toy.reward).value.mean()) / 10)
    assert row.standing.reward.value == pytest.approx(float(toy.reward(held.samples).mean()) / 10)
    assert apart.standing.mmd.parts != apart.weighted.mmd.parts


def test_the_settings_are_the_published_ones(monkeypatch):
    """Noise and threshold of both; the rest is ours."""
    monkeypatch.setattr(toys_settings, "RingLaw", lambda *given, **options: None)
    ring, cycloid = toys_settings.ring.__wrapped__(), toys_settings.cycloid.__wrapped__()
    assert (ring.noise, ring.threshold) == (3.0, 0.0) and (cycloid.noise, cycloid.threshold) == (0.1, 0.9)


def test_the_error_of_a_root_mean_square():
    """Half the relative error of the mean square, by hand."""
    errors = torch.tensor([1.0, -2.0, 3.0, -4.0], dtype=torch.float64)  # squares 1, 4, 9, 16
    found = toys._rms(errors)
    assert found.value == pytest.approx(math.sqrt(7.5)) and found.parts == (1, 4, 9, 16)
    deviation = math.sqrt((6.5**2 + 3.5**2 + 1.5**2 + 8.5**2) / 3)
    assert found.standard_error / found.value == pytest.approx(deviation / 2 / 7.5 / 2)


def test_distances_of_exact_draws_are_those_of_chance_alone(law):
    """A tenth as many draws are sqrt(10) as far off; a shift shows in full."""
    toy = small(law, RingReward())
    few, many = (toys.floor(toy, particles=n, populations=12).weighted for n in (25, 250))
    for name in ("above_error", "reward_error"):
        assert getattr(few, name).value / getattr(many, name).value == pytest.approx(math.sqrt(10), rel=0.5)
    assert abs(many.mmd.value) < 4 * many.mmd.standard_error + 1e-3
    x = toys_settings.exact_samples(toy, 4000, torch.Generator().manual_seed(0)).reshape(16, 250, 2)
    moved = toys._plain(toy, x + torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert moved.sw2.value == pytest.approx(3.0, rel=0.1)


def exact_column(values: list[float]) -> Column:
    return toys._mean(torch.tensor(values, dtype=torch.float64))


def test_differences_in_standard_errors_by_hand():
    a, b = exact_column([0.0, 2.0]), exact_column([4.0, 10.0])  # 1 ± 1 and 7 ± 3; differences 4 and 8
    assert toys._paired(a, b) == pytest.approx(6 / 2)
    assert toys._apart(a, b) == pytest.approx(6 / math.sqrt(10))


@pytest.mark.parametrize(
    ("shift", "outcome"), ((-1.0, "won"), (1.0, "lost"), (0.0, "level")), ids=("nearer", "farther", "same")
)
def test_a_contest_is_decided_by_paired_differences(law, shift, outcome):
    """Populations differ by far more than the look-aheads do, and by the same amounts."""
    toy = small(law, RingReward())
    row = toys.run(toy, "none", 4, particles=40, populations=3)
    spread = [0.0, 50.0, 100.0, 150.0]
    other = row._replace(weighted=row.weighted._replace(mmd=exact_column(spread)))
    noise = [0.1, -0.1, -0.1, 0.1]
    own = [s + shift + e for s, e in zip(spread, noise, strict=True)]
    better = other._replace(lookahead="flow_map", weighted=row.weighted._replace(mmd=exact_column(own)))
    exact = row._replace(weighted=row.weighted._replace(mmd=exact_column([-200.0, -201.0, -199.0, -200.0])))
    found = [
        c for c in toys.contests(toy, [better, other], exact) if (c.view, c.column) == ("weighted", "mmd")
    ]
    assert [c.outcome for c in found] == [outcome] and found[0].room > 4
    assert not shift or (found[0].off < found[0].room) == (shift < 0)
    found = [
        c for c in toys.contests(toy, [better, other], other) if (c.view, c.column) == ("weighted", "mmd")
    ]
    assert [c.outcome for c in found] == ["level"]  # both are where exact draws are
    far = exact_column([s + 1000 for s in spread])
    other = other._replace(weighted=row.weighted._replace(mmd=far))
    found = [
        c for c in toys.contests(toy, [better, other], better) if (c.view, c.column) == ("weighted", "mmd")
    ]
    assert [c.outcome for c in found] == ["won"]  # the map alone is there


def test_distances_of_samples():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(800, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    lines = distances.directions(3, 256, generator, a)
    shift = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    assert float(distances.sliced_wasserstein(a, a, lines)) == 0
    moved = float(distances.sliced_wasserstein(a, a + shift, lines))
    assert moved == pytest.approx(2.0, rel=0.1)
    assert abs(float(distances.mmd(a, b, 1.0))) < 0.005 < float(distances.mmd(a, b + shift, 1.0))
    same, apart = (distances.permutation_drift(a, y, generator=generator) for y in (b, b + shift))
    assert same.significance < 4 < apart.significance
    assert apart.excess == pytest.approx(2.0, rel=0.2)
    with pytest.raises(ValueError, match="same shape"):
        distances.sliced_wasserstein(a, b[:5], lines)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "populations"), (("ring", 400, 16), ("cycloid", 50, 64)))
def test_the_maps_look_ahead_is_nearest_to_the_truth(name, steps, populations):
    """A reduced form of tests/benchmarks/toys.py."""
    toy = getattr(toys_settings, name)()
    exact = toys.floor(toy, populations=populations)
    rows = toys.sweep(toy, (steps,), populations=populations)
    found = toys.contests(toy, rows, exact)
    assert not [c for c in found if c.outcome == "lost"], found
    won = {(c.column, c.other) for c in found if c.outcome == "won" and c.view == toy.views[0]}
    assert won >= {(column, "none") for column in ("above_error", "mmd", "sw2")}, found
    known = toys_settings.truth(toy)
    for row in rows:  # exact weights, whatever the look-ahead
        above = row.weighted.above
        assert abs(above.value - known.above) < 4 * above.standard_error, row.lookahead
