"""Adversarial fine-tuning: whose gradients the losses leave where, and what is judged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fmtt
from data.procedural import procedural
from train.adversarial import LARGEST_RATIO, gradient_ratio, last_layer
from train.build import build_module
from train.losses import PathSample, Times
from train.losses.base import sample_path
from train.losses.relativistic import of_student

ON = ("adversarial.weight=0.5", "adversarial.args={width: 8, depth: 1}")


def a_batch(n: int, generator: torch.Generator) -> tuple[PathSample, Times]:
    x_1 = procedural("mixture").batch(torch.arange(n), 0).x
    s = 0.9 * torch.rand(n, generator=generator)
    times = Times(s, (1 + 3 * s) / 4, (1 + s) / 2)
    path = sample_path(fmtt.Linear(), torch.randn(n, 2, generator=generator), x_1, s)
    return path, times


def test_the_ratio_of_gradients():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    objective, adversarial = weight.square().sum(), 0.1 * weight.sum()
    ratio = gradient_ratio(objective, adversarial, weight)
    # |(6, 8)| / |(0.1, 0.1)|
    assert float(ratio) == pytest.approx(10 / (0.1 * 2**0.5)) and not ratio.requires_grad
    assert float(gradient_ratio(objective, 0 * weight.sum(), weight)) == LARGEST_RATIO
    (objective + adversarial).backward()  # the graphs are there still, and no gradient has been left before
    torch.testing.assert_close(weight.grad, torch.tensor([6.1, 8.1]))


def test_both_losses_reach_their_own_weights_alone(toy, generator):
    """The student's gradient is that of objective + weight ratio verdict; the discriminator's its loss's."""
    config = toy(*ON, "adversarial.from_noise=0.3", distill="lmd")
    module = build_module(config, "distill", (2,))
    student, adversarial = module.student, module.adversarial
    assert adversarial is not None and student.training
    for parameter in student.parameters():  # a fresh second time embedding has no gradient
        nn.init.normal_(parameter, std=0.2)
    path, times = a_batch(32, generator)
    objective = student(path.x_s, times.s, times.t).square().mean()
    total, logs = adversarial(objective, student, path, times, None, torch.Generator().manual_seed(1), 0)
    weights = list(student.parameters())
    judge = dict(adversarial.discriminator.named_parameters())
    left = {name: p.grad.clone() for name, p in judge.items() if p.grad is not None}
    assert left.keys() == judge.keys() and all(p.requires_grad for p in judge.values())
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    for name, parameter in judge.items():  # what the student minimises is nothing to the discriminator
        assert parameter.grad is not None and torch.equal(left[name], parameter.grad)

    again = torch.Generator().manual_seed(1)
    fake = adversarial.samples(student, path, times, None, again)
    verdict = of_student(adversarial.discriminator(path.x_1), adversarial.discriminator(fake)).mean()
    objective = student(path.x_s, times.s, times.t).square().mean()
    matrix = last_layer(student)
    assert matrix is student.network.get_submodule("final").weight
    norms = [torch.autograd.grad(v, matrix, retain_graph=True)[0].norm() for v in (objective, verdict)]
    scale = 0.5 * norms[0] / norms[1]
    assert float(logs["adversarial/ratio"]) == pytest.approx(float(norms[0] / norms[1]), rel=1e-5)
    expected = torch.autograd.grad(objective + scale.detach() * verdict, weights, allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        assert one is None if other is None else torch.allclose(one, other, atol=1e-7, rtol=1e-4)


def test_gradients_of_labelled_samples_by_hand(toy, generator):
    """gamma/2 of each penalty, labels beside data and samples, a share of the accumulated passes."""
    gammas = ("adversarial.r1=0.7", "adversarial.r2=0.2", "adversarial.penalty_step=0")
    small = ("data.source=mixture-labelled", "student.args={width: 8, depth: 1, num_classes: 8}")
    settings = (*gammas, *small, "adversarial.from_noise=1", "trainer.accumulate=2")
    config = toy(*ON, *settings, distill="lmd")
    config.teacher = "oracle:mixture-labelled"
    module = build_module(config, "distill", (2,))
    student, adversarial = module.student, module.adversarial
    assert adversarial is not None
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.2)
    path, times = a_batch(32, generator)
    cond, judge, ones = {"label": torch.arange(32) % 8}, adversarial.discriminator, torch.ones(32)
    objective = student(path.x_s, times.s, times.t, cond).square().mean()
    total, logs = adversarial(objective, student, path, times, cond, torch.Generator(), 0)
    weights = list(student.parameters())
    given = torch.autograd.grad(total, weights, allow_unused=True)

    fake = student(path.x_0, 0 * ones, ones, cond)
    verdict = F.softplus(judge(path.x_1, cond) - judge(fake, cond)).mean()
    objective = student(path.x_s, times.s, times.t, cond).square().mean()
    wanted = objective + 0.5 * logs["adversarial/ratio"] * verdict
    expected = torch.autograd.grad(wanted, weights, allow_unused=True)
    for one, other in zip(given, expected, strict=True):
        assert one is None if other is None else torch.allclose(one, other, atol=1e-7, rtol=1e-4)

    def steepness(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(judge(x, cond).sum(), x, create_graph=True)
        return slope.square().sum(1).mean()

    margin = judge(path.x_1, cond) - judge(fake.detach(), cond)
    loss = F.softplus(-margin).mean() + 0.35 * steepness(path.x_1) + 0.1 * steepness(fake)
    parts = torch.autograd.grad(loss / 2, list(judge.parameters()))
    for parameter, part in zip(judge.parameters(), parts, strict=True):
        torch.testing.assert_close(parameter.grad, part, atol=1e-7, rtol=1e-4)


def test_samples_start_from_noise_or_from_the_path(toy, generator):
    module = build_module(toy(*ON, "adversarial.from_noise=0.25", distill="lmd"), "distill", (2,))
    assert module.adversarial is not None
    path, times = a_batch(4000, generator)
    found = module.adversarial.samples(module.student, path, times, None, generator)
    from_noise = module.student(path.x_0, 0.0, torch.ones(4000))
    from_path = module.student(path.x_s, times.s, torch.ones(4000))
    first = (found - from_noise).abs().amax(1) < 1e-5
    assert ((found - from_path).abs().amax(1) < 1e-5)[~first].all()
    assert float(first.float().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
