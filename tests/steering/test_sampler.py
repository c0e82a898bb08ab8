"""fmtt.tilt as a whole: reproducible, chunked, in populations, priced, and clear about wrong input."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian
from fmtt.steering.lookahead import DenoiserLookahead, FlowMapLookahead


def reward(x: Tensor, cond: Any = None) -> Tensor:
    return 1.5 * x[:, 0] - x[:, 0].square() / 2


def tilt(flow: Any, seed: int = 0, **options: Any) -> fmtt.TiltResult:
    settings = {"num_particles": 64, "num_steps": 12, "dtype": torch.float64, **options}
    score = settings.pop("reward", reward)
    return fmtt.tilt(flow, score, generator=torch.Generator().manual_seed(seed), **settings)


def same(a: fmtt.TiltResult, b: fmtt.TiltResult) -> bool:
    tensors = [(r.samples, r.log_weights, r.log_z, r.ess, r.rewards, r.eve, *r.history) for r in (a, b)]
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(*tensors, strict=True))


def discretised(flow: Gaussian, slope: float, steps: int, noise: Any = lambda t: 1 - t) -> float:
    """E[x] under the Euler-Maruyama base process of a 1-D Gaussian, tilted by e^(slope x), in closed form."""
    mean, variance, h = 0.0, 1.0, 1 / steps
    for k in range(steps):
        t = torch.tensor(k * h, dtype=torch.float64)
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        b = flow.velocity(x, t)
        eps = noise(k * h + h)
        start, end = (b + eps * (t * b - x) / (1 - t)).flatten().tolist()
        rate = end - start
        mean, variance = mean + h * (start + rate * mean), (1 + h * rate) ** 2 * variance + 2 * eps * h
    return mean + slope * variance


@pytest.mark.parametrize("weights", ("exact", "path"))
def test_the_seed_decides_every_bit(product_mixture: Any, weights: str) -> None:
    flow, options = product_mixture(1), {"weights": weights, "ess_threshold": 0.95}
    first = tilt(flow, **options)
    assert first.history.resampled.any()
    assert same(first, tilt(flow, **options)) and not same(first, tilt(flow, seed=1, **options))


@pytest.mark.parametrize(
    "more",
    (
        {},
        {"kernel": "renoise"},
        {"gradient": "zeroth", "num_probes": 2},
        {"schedule": "adaptive:0.9"},
        {"weights": "exact", "chi": 0.3, "num_probes": 2},
        {"lookahead_steps": 2, "checkpoint": True, "num_steps": 3},
    ),
    ids=str,
)
def test_chunks_change_no_bit(product_mixture: Any, more: dict[str, Any]) -> None:
    flow = product_mixture(2)
    options = {"weights": "path", "ess_threshold": 0.95, "num_populations": 3, "num_steps": 6, **more}
    whole = tilt(flow, **options)
    assert whole.history.resampled.any()
    for size in (50, 1000):
        assert same(whole, tilt(flow, chunk_size=size, **options))


def test_the_global_generator_is_left_alone(product_mixture: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tilt(product_mixture(1))
    assert torch.equal(torch.rand(1), expected)


def test_populations_are_independent_and_labelled(product_mixture: Any) -> None:
    result = tilt(product_mixture(1), num_populations=3, ess_threshold=0.99)
    assert result.samples.shape == (192, 1) and result.log_z.shape == result.ess.shape == (3,)
    assert result.population.tolist() == [0] * 64 + [1] * 64 + [2] * 64
    assert result.best.shape == (3, 1)
    assert torch.equal(result.best_rewards, result.rewards.reshape(3, 64).amax(1))
    assert result.history.ancestors.shape == (12, 3, 64) and int(result.history.ancestors.max()) < 64
    single = tilt(product_mixture(1))
    assert single.log_z.shape == single.ess.shape == () and single.best.shape == (1, 1)


def test_eve_follows_the_ancestors(product_mixture: Any) -> None:
    result = tilt(product_mixture(1), ess_threshold=1.0, num_populations=2)
    eve = torch.arange(64).expand(2, 64)
    for ancestors in result.history.ancestors.long():
        eve = eve.gather(1, ancestors)
    assert torch.equal(result.eve.reshape(2, 64), eve)
    assert len(result.eve[:64].unique()) < 64


def test_prompts_reach_network_and_reward() -> None:
    """Each population has its own condition; the reward sees it row by row."""
    flow = Gaussian([0.0], 0.4)
    pull = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)

    def prompted(x: Tensor, cond: Any) -> Tensor:
        return cond["pull"] * x[:, 0]

    options: dict[str, Any] = {"num_particles": 4000, "num_steps": 40, "weights": "path"}
    result = tilt(flow, reward=prompted, cond={"pull": pull}, **options)
    found = result.expect(lambda x: x[:, 0])
    assert result.num_populations == 3
    truth = torch.tensor([discretised(flow, slope, 40) for slope in pull.tolist()])
    assert ((found.value - truth).abs() < 4 * found.standard_error).all()
    assert (4 * found.standard_error < 0.1).all()
    shared = tilt(flow, reward=prompted, cond={"pull": pull[:1]}, num_populations=2)
    assert shared.num_populations == 2


def test_without_noise_weights_are_rewards(product_mixture: Any) -> None:
    for weights in ("exact", "path"):
        result = tilt(product_mixture(1), noise=0.0, weights=weights, resample="none")
        torch.testing.assert_close(result.log_weights, reward(result.samples))
        assert not result.cost.backwards


def test_noise_may_last_to_the_end() -> None:
    """A callable eps(1) > 0 is allowed, even where the weights need derivatives: it blurs by 2 eps h, which
    path weights know and exact ones see vanish."""
    flow, options = Gaussian([0.5], 0.3), {"noise": lambda t: 0.5, "num_particles": 20_000, "num_steps": 100}
    limit, truth = 0.5 + 1.2 * 0.3, discretised(flow, 1.2, 100, lambda t: 0.5)
    for weights, slack in (("exact", abs(truth - limit)), ("path", 0.0)):
        result = tilt(flow, reward=lambda x, c: 1.2 * x[:, 0], weights=weights, **options)
        found = result.expect(lambda x: x[:, 0])
        assert abs(found.value - truth) < 4 * found.standard_error + slack < 0.1


def test_works_inside_inference_mode(product_mixture: Any) -> None:
    with torch.inference_mode():
        x = torch.zeros(1, 1, dtype=torch.float64)
        assert same(tilt(product_mixture(1)), tilt(product_mixture(1)))
        tilt(product_mixture(1), x_init=x, t_start=0.5)


def test_zero_reward_leaves_equal_weights(product_mixture: Any) -> None:
    result = tilt(product_mixture(1), reward=lambda x, c: 0.0 * x[:, 0], num_populations=2)
    assert not result.log_weights.any() and not result.log_z.any()
    torch.testing.assert_close(result.ess, torch.ones(2, dtype=torch.float64))


def test_every_particle_may_have_its_own_condition() -> None:
    pull = torch.linspace(-1, 1, 6, dtype=torch.float64)
    seen = []

    def prompted(x: Tensor, cond: Any) -> Tensor:
        seen.append(cond["pull"])
        return cond["pull"] * x[:, 0]

    tilt(Gaussian([0.0], 0.4), reward=prompted, cond={"pull": pull}, num_particles=3, num_populations=2)
    assert torch.equal(seen[-1], pull)


def test_another_map_may_look_ahead(product_mixture: Any, wrong_map: Any) -> None:
    flow = product_mixture(1)
    named = tilt(flow, lookahead_map=wrong_map(1))
    assert same(named, tilt(flow, lookahead=FlowMapLookahead(wrong_map(1)))) and not same(named, tilt(flow))


def test_resampling_at_given_times_and_at_the_end(product_mixture: Any) -> None:
    options = {"resample_at": [0.3, 0.75], "num_populations": 2, "weights": "path"}
    result = tilt(product_mixture(1), **options)
    assert result.history.t[result.history.resampled.all(1)].tolist() == [4 / 12, 9 / 12]
    assert int(result.history.resampled.sum()) == 4 and result.log_weights.any()
    last = tilt(product_mixture(1), final_resample=True, **options)
    assert not last.log_weights.any() and last.history.resampled[-1].all()
    assert torch.equal(last.log_z, result.log_z)
    copies = last.samples[:, None] == result.samples
    assert copies.any(1).all() and torch.equal(last.rewards, reward(last.samples))
    assert tilt(product_mixture(1), resample_at=[]).history.resampled.any() == False  # noqa: E712


def test_another_velocity_may_drive_the_particles() -> None:
    """The map of one law looks ahead for the particles of another; path weights do not mind."""
    truth, other = Gaussian([0.5], 0.3), Gaussian([0.0], 1.0)
    steps, limit = 60, 0.5 + 1.2 * 0.3
    expected = discretised(truth, 1.2, steps)
    options: dict[str, Any] = {"num_particles": 20_000, "num_steps": steps, "velocity": truth.velocity}
    for weights, slack in (("exact", abs(expected - limit)), ("path", 0.0)):
        result = tilt(other, reward=lambda x, c: 1.2 * x[:, 0], weights=weights, **options)
        found = result.expect(lambda x: x[:, 0])
        assert abs(found.value - expected) < 4 * found.standard_error + slack
        assert abs(found.value - discretised(other, 1.2, steps)) > 0.2  # what the other's velocity gives


def test_few_renoising_steps_tilt_an_exact_map() -> None:
    """Marginals are exact at any number of steps, so six steps suffice for the closed form."""
    flow = Gaussian([0.5], 0.3)
    result = tilt(
        flow,
        reward=lambda x, c: 1.2 * x[:, 0],
        kernel="renoise",
        weights="path",
        num_steps=6,
        num_particles=2500,
        num_populations=16,
    )
    found = result.expect(lambda x: x[:, 0]).value
    assert abs(found.mean() - 0.86) < 4 * found.std() / 4
    assert abs(result.log_z.mean() - 0.816) < 4 * result.log_z.std() / 4
    assert result.cost.passes == 40_000 * (6 + 2 * 4)


def test_rewards_without_gradient_need_path_weights(product_mixture: Any) -> None:
    def rounded(x: Tensor, cond: Any) -> Tensor:
        return x[:, 0].detach().round()

    with pytest.raises(UserError, match="weights='path'"):
        tilt(product_mixture(1), reward=rounded)
    result = tilt(product_mixture(1), reward=rounded, weights="path")
    assert result.cost.backwards == 0


def test_guidance_without_weights_says_so(product_mixture: Any) -> None:
    result = tilt(product_mixture(1), weights="none", guidance=2.0)
    assert not result.log_weights.any() and result.base_law.startswith("None")
    assert result.log_z.isnan() and result.history.log_z.isnan().all()
    assert not result.pooled_log_weights.any()


def test_the_papers_weights_warn(product_mixture: Any) -> None:
    with pytest.warns(UserWarning, match="biased"):
        tilt(product_mixture(1), weights="paper")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tilt(product_mixture(1), weights="exact")


def test_lookahead_objects_are_accepted(product_mixture: Any, wrong_map: Any) -> None:
    flow = product_mixture(1)
    named = tilt(flow, lookahead="denoiser")
    assert same(named, tilt(flow, lookahead=DenoiserLookahead(flow.interpolant)))
    assert not same(named, tilt(flow, lookahead=FlowMapLookahead(wrong_map(1))))


def test_gradients_enabled_outside_are_not_recorded(product_mixture: Any) -> None:
    with torch.enable_grad():
        assert not tilt(product_mixture(1)).samples.requires_grad


def test_data_shape_is_asked_for_where_unknown() -> None:
    flow = Gaussian([0.2])

    class Bare:
        interpolant = flow.interpolant
        velocity = staticmethod(flow.velocity)

        def __call__(self, *args: Any) -> Tensor:
            return flow(*args)

    with pytest.raises(UserError, match="data_shape"):
        tilt(Bare())
    assert tilt(Bare(), data_shape=(1,)).samples.shape == (64, 1)
