"""Search finds more reward per network pass, and claims nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.baselines.best_of_n import best_of_n
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian

FLOW = Gaussian([0.0, 0.0], 1.0)
NAMES = ("flow_map", "denoiser", "euler", "none")
TARGET = torch.tensor([1.9, -1.9], dtype=torch.float64)


def reward(x: Tensor, cond: Any = None) -> Tensor:
    return -8 * (x - TARGET).square().sum(1)


def search(seed: int = 0, **options: Any) -> fmtt.SearchResult:
    settings = {"num_particles": 12, "keep": 3, "rounds": 4, "num_populations": 32, **options}
    score = settings.pop("reward", reward)
    generator = torch.Generator().manual_seed(seed)
    return fmtt.search(FLOW, score, dtype=torch.float64, generator=generator, **settings)


@pytest.mark.parametrize(
    ("kernel", "lookahead"),
    [*(("sde", name) for name in NAMES), *(("renoise", name) for name in NAMES if name != "none")],
)
@pytest.mark.parametrize("gradient", ("auto", "zeroth", "none"))
def test_every_kind_runs_and_is_reproducible(kernel: str, lookahead: str, gradient: str) -> None:
    options: dict[str, Any] = {"kernel": kernel, "lookahead": lookahead, "gradient": gradient}
    a, b, chunked = search(**options), search(**options), search(chunk_size=7, **options)
    assert torch.equal(a.samples, b.samples) and torch.allclose(a.samples, chunked.samples)
    assert a.samples.shape == (32 * 12, 2) and a.best.shape == (32, 2) and a.history.best.shape == (4, 32)
    torch.testing.assert_close(a.best_rewards, reward(a.best))
    assert torch.equal(a.best_rewards, a.rewards.reshape(32, 12).amax(1))
    assert a.base_law.startswith("None") and not hasattr(a, "log_weights")


@pytest.mark.parametrize("gradient", ("auto", "none"))
def test_beats_best_of_n_at_equal_cost(gradient: str) -> None:
    found = search(kernel="renoise", gradient=gradient, num_populations=64)
    budget = int(found.cost.passes_per_population)
    generator = torch.Generator().manual_seed(1)
    baseline = best_of_n(
        FLOW,
        reward,
        num_samples=budget,
        steps=1,
        num_populations=64,
        dtype=torch.float64,
        generator=generator,
    )
    assert baseline.cost.passes_per_population >= budget
    difference = found.best_rewards - baseline.best_rewards
    assert difference.mean() > 4 * difference.std() / 8


@pytest.mark.parametrize("kernel", ("sde", "renoise"))
def test_the_best_candidate_is_never_lost_with_an_exact_map(kernel: str) -> None:
    """The noise-free clone's look-ahead stays put, up to the Euler steps of the sde kernel."""
    found = search(kernel=kernel, gradient="none", num_steps=200 if kernel == "sde" else None)
    best = torch.cat([found.history.best, found.best_rewards[None].double()])
    slack = 1e-8 if kernel == "renoise" else 0.5
    assert (best.diff(dim=0) > -slack).all()
    assert (best[-1] > best[0] + 1).double().mean() > 0.5


def test_guidance_helps_and_its_strength_matters() -> None:
    plain = search(kernel="renoise", gradient="none")
    guided = search(kernel="renoise", guidance=0.5)
    assert guided.best_rewards.mean() > plain.best_rewards.mean()
    off = search(kernel="renoise", guidance=0.0)
    assert torch.equal(off.samples, plain.samples) and off.cost.passes == plain.cost.passes


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        # 5 looks at 12 candidates, and 3 survivors carried on by the map in 4 rounds
        ({"kernel": "renoise", "gradient": "none"}, 5 * 12 + 4 * 3),
        # a gradient costs 3 passes and only survivors pay for it
        ({"kernel": "renoise"}, 5 * 12 + 4 * 3 + 4 * 3 * 3),
        # 16 velocities for everyone, 4 for survivors, 4 looks for everyone
        ({"num_steps": 20, "gradient": "none"}, 16 * 12 + 4 * 3 + 4 * 12),
        # a denoiser's look is the velocity itself
        ({"num_steps": 20, "gradient": "none", "lookahead": "denoiser"}, 20 * 12),
    ],
)
def test_clones_share_their_parents_passes(options: dict[str, Any], passes: int) -> None:
    assert search(**options).cost.passes_per_population == passes


def test_a_denoiser_is_not_asked_at_the_start() -> None:
    """Every noise has the same denoised mean there."""
    assert search(lookahead="denoiser").history.t[0] > 0
    assert search(lookahead="flow_map").history.t[0] == 0


def test_tempered_selection_draws_by_reward_and_keeps_more_alive() -> None:
    """Temperature runs from the top few (cold) to a blind draw (hot)."""
    options = {"kernel": "renoise", "gradient": "none", "keep": 6}
    top = search(**options)
    cold, warm, hot = (search(selection="tempered", temperature=t, **options) for t in (1e-3, 10.0, 1e6))
    assert cold.distinct_ancestors is not None and warm.distinct_ancestors is not None
    assert cold.best_rewards.mean() > hot.best_rewards.mean() < warm.best_rewards.mean()
    assert warm.mean_pairwise_distance.mean() > top.mean_pairwise_distance.mean()
    assert warm.distinct_ancestors.double().mean() > cold.distinct_ancestors.double().mean()


def test_a_judge_that_answers_nonsense_is_named() -> None:
    for wrong in (lambda x, c: torch.full((7,), float("nan")), lambda x, c: x[:, 0] / 0):
        with pytest.raises(UserError, match="the judge must return a finite number for each"):
            search(judge=wrong, kernel="renoise")


def test_diversity_and_judge_are_reported() -> None:
    found = search(judge=lambda x, c: x[:, 0], kernel="renoise")
    assert found.eve is not None and found.distinct_ancestors is not None
    assert found.distinct_ancestors.tolist() == [len(e.unique()) for e in found.eve.reshape(32, 12)]
    assert (found.distinct_ancestors <= 3).all()
    rows = found.samples.reshape(32, 12, 2)
    pairs = (rows[:, :, None] - rows[:, None]).square().mean(3).sqrt().sum((1, 2)) / (12 * 11)
    torch.testing.assert_close(found.mean_pairwise_distance, pairs)
    assert found.judge_rewards is not None and torch.equal(found.judge_rewards, found.best[:, 0])
    assert found.cost.reward_calls == search(kernel="renoise").cost.reward_calls
    assert search().judge_rewards is None


def test_rewards_need_no_gradient() -> None:
    found = search(reward=lambda x, c: reward(x).round().detach())
    assert found.cost.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": 13}, "keep"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 9, "num_steps": 8}, "rounds"),
        ({"noise": 0.0}, "noise"),
        ({"kernel": "jump"}, "kernel"),
        ({"selection": "best"}, "selection"),
        ({"selection": "tempered", "temperature": 0.0}, "temperature"),
        ({"schedule": "adaptive"}, "adaptive"),
        ({"max_reward_calls": 10}, "max_reward_calls"),
        ({"kernel": "renoise", "lookahead": "none"}, "lookahead"),
    ],
)
def test_wrong_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(**options)
