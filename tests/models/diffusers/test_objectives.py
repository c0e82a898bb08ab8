"""Distillation on the real classes: every kind of derivative that an objective takes of a LoRA student."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fmtt.flow.calculus import jvp
from fmtt.models.diffusers.pretrained import FAMILIES, load_flow_map
from fmtt.models.diffusers.student import Lora, student_of, teacher_of, trained_parameters
from tests.models.diffusers.conftest import conditions
from train.losses import OBJECTIVES
from train.losses.base import Times, sample_path

Folder = Callable[[str], str]


@pytest.mark.parametrize("objective", ["lmd", "emd", "psd"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_learns_from_the_teacher_it_shares_weights_with(name: str, objective: str, folder: Folder):
    student = student_of(load_flow_map(folder(name), height=8, width=8), lora=Lora(rank=2))
    teacher = teacher_of(student)
    cond = conditions(name, 2)
    x_0, x_1 = torch.randn(2, 2, *student.data_shape)
    times = Times(torch.tensor([0.3, 0.5]), torch.tensor([0.35, 0.5]), torch.tensor([0.45, 0.5]))
    path = sample_path(student.interpolant, x_0, x_1, times.s)
    before = teacher.velocity(path.x_s, times.s, cond)
    weights = trained_parameters(student)
    optimizer = torch.optim.Adam(weights.values(), lr=3e-4)
    losses = []
    for _ in range(4):
        loss = OBJECTIVES[objective](student, teacher.velocity, path, times, cond).per_sample.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    gradients = {key: p.grad for key, p in weights.items() if p.grad is not None and bool(p.grad.any())}
    assert any("lora_A" in key for key in gradients) and any("second_time" in key for key in gradients)
    assert torch.tensor(losses).isfinite().all()
    if objective != "emd":  # whose target moves with the student
        assert losses[-1] < losses[0], "off the diagonal there is something to learn"
    assert torch.equal(teacher.velocity(path.x_s, times.s, cond), before)


def test_a_tangent_through_the_teacher_leaves_the_adapters_out(folder: Folder):
    teacher = load_flow_map(folder("flux"), height=8, width=8)
    x, v = torch.randn(2, 2, *teacher.data_shape)
    cond = conditions("flux", 2)
    alone = jvp(lambda x_: teacher.velocity(x_, 0.4, cond), (x,), (v,))
    student = student_of(teacher, lora=Lora(rank=2))
    with torch.no_grad():
        for weight in trained_parameters(student).values():
            weight.add_(0.2 * torch.randn_like(weight))
    for shared in (teacher, teacher_of(student)):
        for a, b in zip(jvp(lambda x_, m=shared: m.velocity(x_, 0.4, cond), (x,), (v,)), alone, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
