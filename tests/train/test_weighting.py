"""Weightings: their formulas, their gradients, and that a learned one finds the expected loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmtt.errors import UserError
from train.build import build_module
from train.checkpoints import checkpoints, read_checkpoint
from train.config_times import WeightingConfig
from train.export import rebuild
from train.losses import Times
from train.losses.base import mean_square
from train.run import train
from train.weighting import (
    LearnedWeight,
    Ramp,
    Weighting,
    gap_weight,
    normalised,
    pseudo_huber,
    time_left_weight,
)


def times(s: list[float], t: list[float]) -> Times:
    a, b = torch.tensor(s), torch.tensor(t)
    return Times(a, (a + b) / 2, b)


def test_powers_of_time():
    at = times([0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.9, 1.0])
    assert torch.equal(time_left_weight(at, 0.0), torch.ones(4))
    torch.testing.assert_close(time_left_weight(at, 2.0), torch.tensor([1.0, 0.25, 0.01, 0.0004]))
    torch.testing.assert_close(gap_weight(at, 1.0), torch.tensor([1.0, 0.5, 0.9, 1.0]))
    nearly = times([0.5, 0.5], [0.5, 0.5001])  # the diagonal counts whole, and no weight is infinite
    torch.testing.assert_close(gap_weight(nearly, -1.0), torch.tensor([1.0, 50.0]))


def test_pseudo_huber_is_quadratic_and_then_linear():
    c, size = 0.1, torch.tensor([1e-3, 1e-2, 10.0, 100.0], dtype=torch.float64)
    value = pseudo_huber(size.square(), c)
    torch.testing.assert_close(value[:2], size[:2].square() / (2 * c), rtol=3e-3, atol=0)
    torch.testing.assert_close(value[2:], size[2:] - c, rtol=1e-3, atol=0)


def test_normalised_has_the_gradient_of_a_normalised_residual():
    residual = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = normalised(mean_square(residual), 0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), residual)
    size = residual.flatten(1).square().mean(1).sqrt()[:, None, None]
    torch.testing.assert_close(gradient, 2 / 12 * residual / (size + 0.1))
    (plain,) = torch.autograd.grad(mean_square(residual).sum(), residual)
    assert not torch.allclose(gradient, plain)


def test_parts_compose():
    per_sample, at = torch.rand(6), times([0.1] * 6, [0.1, 0.2, 0.4, 0.6, 0.8, 0.9])
    assert torch.equal(Weighting()(per_sample, at), per_sample)
    weighting = Weighting(WeightingConfig(gap_power=1.0, pseudo_huber=0.3), 2.0)
    expected = (1 - at.t) ** 2 * gap_weight(at, 1.0) * ((per_sample + 0.09).sqrt() - 0.3)
    torch.testing.assert_close(weighting(per_sample, at), expected)
    assert not list(weighting.parameters())
    learned = Weighting(WeightingConfig(gap_power=1.0, learned=True))  # starts as no weighting at all
    torch.testing.assert_close(learned(per_sample, at), gap_weight(at, 1.0) * per_sample)


def test_a_learned_weight_finds_the_expected_loss(generator):
    """The minimum of E[e^-w L + w] is at e^w = E[L | s, t]: every (s, t) then counts alike."""

    def expected(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(2 * s - 3 * t * s)

    torch.manual_seed(0)
    weight = LearnedWeight()
    optimizer = torch.optim.Adam(weight.parameters(), lr=1e-2)
    for _ in range(300):
        a, b = torch.rand(2, 512, generator=generator)
        noise = -torch.rand(512, generator=generator).clamp_min(1e-6).log()  # exponential, of mean 1
        w = weight(a, b)
        loss = (torch.exp(-w) * expected(a, b) * noise + w).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    a, b = torch.rand(2, 1000, generator=generator)
    error = weight(a, b).detach() - expected(a, b).log()
    spread = float(expected(a, b).log().std())  # what the best constant would be off by
    assert float(error.square().mean().sqrt()) < 0.3 * spread


def test_ramp():
    assert [Ramp(10).at(step) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.495, 0.99, 0.99])
    assert Ramp().at(0) == 1.0 and Ramp(4, 0.5).at(2) == 0.25


def test_a_learned_weighting_is_trained_and_saved_but_not_exported(toy):
    config = toy("weighting.learned=true", "optimizer.lr=0.01", "max_steps=4")
    train(config, "pretrain")
    content = read_checkpoint(checkpoints(Path(config.run_dir) / "checkpoints")[-1][1])
    saved = {n: v for n, v in content["state_dict"].items() if n.startswith("weighting.")}
    fresh = build_module(config, "pretrain", (2,))
    assert saved.keys() == {n for n in fresh.state_dict() if n.startswith("weighting.")}
    assert saved["weighting.learned.out.weight"].abs().max() > 0
    assert not [n for n in rebuild(content).state_dict() if "weighting" in n]
    changed = toy("weighting.learned=false", "optimizer.lr=0.01", "max_steps=6")
    with pytest.raises(UserError, match=r"^weighting.learned is False, but the run in .* started with True"):
        train(changed, "pretrain")


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["weighting.gap_power=11"], "weighting.gap_power must lie in [-10, 10], got 11"),
        (["weighting.pseudo_huber=-1"], "weighting.pseudo_huber must be at least 0, got -1"),
        (["weighting.tangent_normalisation=.nan"], "weighting.tangent_normalisation must be at least 0"),
        (["weighting.ramp_end=2"], "weighting.ramp_end must lie in [0, 1]"),
        (["weighting.ramp_steps=-1"], "weighting.ramp_steps must be at least 0"),
        (["weighting={pseudo_huber: 1, tangent_normalisation: 1}"], "keep one, 0 the other"),
        (["weighting.learnt=true"], "did you mean 'weighting.learned'"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_wrong_settings_are_named_in_one_line(overrides, says, toy):
    with pytest.raises(UserError) as caught:
        toy(*overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)
