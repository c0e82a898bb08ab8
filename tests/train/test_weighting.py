"""Weightings: their formulas, their gradients, and that a learned one finds the expected loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmtt.errors import UserError
from train.build import build_module
from train.checkpoints import checkpoints, read_checkpoint
from train.config_times import WeightingConfig
from train.export import rebuild
from train.losses import Times, have_times, times_of
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


def test_weights_are_by_the_times_of_the_loss():
    """That of a jump to t = 1 does not know where t was drawn."""
    weighting = Weighting(WeightingConfig(gap_power=1.0), 2.0)
    near, far, loss = times([0.1] * 3, [0.25] * 3), times([0.1] * 3, [0.9] * 3), torch.rand(3)
    assert not torch.allclose(weighting(loss, near), weighting(loss, far))
    one, other = (times_of(["consistency"], at) for at in (near, far))
    assert one is not None and other is not None and torch.equal(one.t, torch.ones(3))
    assert torch.equal(weighting(loss, one), weighting(loss, other))
    diagonal = times_of(["flow_matching", "diagonal"], far)
    assert diagonal is not None
    torch.testing.assert_close(weighting(loss, diagonal), 0.9**2 * loss)


def test_times_of_sums():
    at, here = times([0.1, 0.2, 0.3], [0.1, 0.6, 0.9]), torch.tensor([True, False, False])
    for names in (["lsd"], ["psd"], ["lmd", "tvm"], ["emd", "flow_matching"]):
        assert times_of(names, at) is at  # the very same: nothing is rounded on the way
    mixed = times_of(["consistency", "diagonal"], at)
    assert mixed is not None and torch.equal(mixed.t, torch.where(here, at.t, 1.0))
    for names in (["trajectory"], ["trajectory", "diagonal"], ["consistency", "lmd"]):
        assert not have_times(names) and times_of(names, at) is None


@pytest.mark.parametrize(
    "objective, logged",
    [
        ("consistency", {"loss_off_diagonal"}),
        ("diagonal", {"loss_diagonal"}),
        ("lmd", {"loss_diagonal", "loss_off_diagonal"}),
        ("trajectory", set()),
    ],
)
def test_a_run_weighs_and_logs_by_them(objective, logged, toy, monkeypatch):
    seen, weigh = [], Weighting.forward

    def forward(self, per_sample, at):
        seen.append(at)
        return weigh(self, per_sample, at)

    monkeypatch.setattr(Weighting, "forward", forward)
    few = ("max_steps=1", "evaluate.num_samples=0", "times.diagonal=0.5")
    run_dir = train(toy(*few, "teacher=oracle:mixture", f"objective.name={objective}"), "distill")
    (at,) = seen
    if objective in ("consistency", "diagonal"):
        assert torch.equal(at.t, torch.ones_like(at.s) if objective == "consistency" else at.s)
    columns = (run_dir / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {name for name in columns if name.startswith("loss_") and "diagonal" in name} == logged


@pytest.mark.parametrize(
    "objective, key",
    [
        ("{trajectory: 1}", "objective.time_left_power=1"),
        ("{trajectory: 1}", "weighting.gap_power=1"),
        ("{consistency: 1, lmd: 1}", "weighting.learned=true"),
    ],
)
def test_weights_by_times_need_one_time_per_sample(objective, key, toy):
    config = toy("teacher=oracle:mixture", "objective.name=''", f"objective.terms={objective}", key)
    with pytest.raises(UserError) as caught:
        build_module(config, "distill", (2,))
    said = str(caught.value)
    assert said.startswith(key.partition("=")[0]) and "has several: leave it out" in said and "\n" not in said


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


def test_the_gradient_of_a_learned_weighting_is_clipped_and_must_be_finite(toy, monkeypatch):
    module = build_module(toy("weighting.learned=true", "optimizer.clip=1"), "pretrain", (2,))
    module._trainer = SimpleNamespace(precision="32-true", is_global_zero=True, global_step=0)  # type: ignore[assignment]
    logged = {}
    monkeypatch.setattr(module, "log", logged.__setitem__)
    parameters = list(module.weighting.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    module.configure_gradient_clipping(None)
    size = sum(p.numel() for p in parameters) ** 0.5
    assert float(logged["grad_norm"]) == pytest.approx(size)
    assert all(torch.allclose(p.grad, torch.tensor(1 / size)) for p in parameters if p.grad is not None)
    assert parameters[0].grad is not None
    parameters[0].grad.fill_(float("inf"))
    with pytest.raises(UserError, match="the gradient is not finite"):
        module.configure_gradient_clipping(None)


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
