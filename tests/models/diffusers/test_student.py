"""LoRA students share their teacher's weights; students trained in full do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.diffusers.pretrained import FAMILIES, load_flow_map
from fmtt.models.diffusers.student import Lora, merge, network_of, student_of, teacher_of, trained_parameters
from fmtt.tensor import expand_like
from tests.models.diffusers.conftest import conditions

Folder = Callable[[str], str]


def trained(student: NeuralFlowMap) -> NeuralFlowMap:
    with torch.no_grad():
        for weight in trained_parameters(student).values():
            weight.add_(0.2 * torch.randn_like(weight))
    return student


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_off_is_the_teacher_bit_for_bit(name: str, folder: Folder):
    teacher = load_flow_map(folder(name), height=8, width=8)
    x, s, t = torch.randn(2, *teacher.data_shape), torch.tensor([0.2, 0.5]), torch.tensor([0.9, 1.0])
    cond = conditions(name, 2)
    before = teacher.velocity(x, s, cond)
    student = student_of(teacher, lora=Lora(rank=2))
    euler = x + expand_like(t - s, x) * before
    assert torch.equal(student(x, s, t, cond), euler)
    moved = trained(student)(x, s, t, cond)
    assert not torch.allclose(moved, euler, atol=1e-3)
    own = teacher_of(student)
    assert torch.equal(own.velocity(x, s, cond), before)
    assert torch.equal(teacher.velocity(x, s, cond), before)
    assert torch.equal(own(x, s, t, cond), euler)
    assert torch.equal(student(x, s, t, cond), moved)


def test_only_adapters_and_the_second_time_are_trained(folder: Folder):
    teacher = load_flow_map(folder("flux"), height=8, width=8, dtype=torch.bfloat16)
    base = {id(p) for p in teacher.parameters()}
    student = student_of(teacher, lora=Lora(rank=2))
    names = trained_parameters(student)
    assert all("lora_" in name or "second_time" in name for name in names)
    assert any("lora_A" in name for name in names) and any("second_time" in name for name in names)
    assert {p.dtype for p in names.values()} == {torch.float32}
    frozen = {id(p) for p in student.parameters() if not p.requires_grad}
    assert frozen == base, "the base is the teacher's own, not a copy"
    cond = conditions("flux", 2)
    x = torch.randn(2, *teacher.data_shape)
    teacher_of(student).velocity(x, 0.3, cond)
    assert trained_parameters(student).keys() == names.keys(), "a teacher's call leaves requires_grad alone"
    student(x, 0.3, 0.8, cond).square().sum().backward()
    with_gradient = {name for name, p in names.items() if p.grad is not None and bool(p.grad.any())}
    assert any("lora_B" in name for name in with_gradient)
    assert any("second_time.embed.out" in name for name in with_gradient)
    student.requires_grad_(False)
    teacher_of(student).velocity(x, 0.3, cond)
    assert not trained_parameters(student), "not even of a frozen student"


def test_a_teachers_call_inside_a_step_leaves_the_students_gradient_alone(folder: Folder):
    """Also with activation checkpointing, which repeats forwards in the reverse pass."""
    student = trained(student_of(load_flow_map(folder("flux"), height=8, width=8), lora=Lora(rank=2)))
    x, cond = torch.randn(2, *student.data_shape), conditions("flux", 2)
    transformer = network_of(student).transformer

    def gradient(checkpointing: bool, between: bool) -> list[torch.Tensor]:
        transformer.gradient_checkpointing = checkpointing
        out = student(x, 0.3, 0.8, cond)
        if between:
            own = x.clone().requires_grad_()
            velocity = teacher_of(student).velocity(own, 0.3, cond)
            torch.autograd.grad(velocity.sum(), own)
        return list(torch.autograd.grad(out.square().sum(), list(trained_parameters(student).values())))

    transformer.enable_gradient_checkpointing()
    plain = gradient(False, False)
    for options in ((False, True), (True, False), (True, True)):
        for a, b in zip(plain, gradient(*options), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_merging_keeps_the_map(folder: Folder):
    student = trained(student_of(load_flow_map(folder("sd3"), height=8, width=8), lora=Lora(rank=2, alpha=4)))
    x, cond = torch.randn(2, *student.data_shape), conditions("sd3", 2)
    before = student(x, 0.2, 0.9, cond)
    merge(student)
    assert not any("lora" in name or "base_layer" in name for name in student.state_dict())
    torch.testing.assert_close(student(x, 0.2, 0.9, cond), before, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="holds no teacher"):
        teacher_of(student)


def test_full_training_leaves_the_teacher_alone(folder: Folder):
    teacher = load_flow_map(folder("sana"), height=8, width=8)
    student = trained(student_of(teacher))
    assert all(p.requires_grad for p in student.parameters())
    again = load_flow_map(folder("sana"), height=8, width=8)
    for a, b in zip(teacher.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and not a.requires_grad


def test_what_does_not_fit_is_refused_in_one_line(folder: Folder):
    teacher = load_flow_map(folder("flux"), height=8, width=8)
    with pytest.raises(UserError, match="lora.targets: Target modules"):
        student_of(teacher, lora=Lora(targets=["no_such_layer"]))
    with pytest.raises(UserError, match="second_time must be one of none, zero_init, averaged"):
        student_of(teacher, second_time="zero")
    with pytest.raises(UserError, match="rank must be at least 1"):
        student_of(teacher, lora=Lora(rank=0))
    student_of(teacher, lora=Lora(rank=1))
    with pytest.raises(UserError, match="adapters already"):
        student_of(teacher, lora=Lora(rank=1))
    with pytest.raises(UserError, match="load the teacher again"):
        student_of(teacher)
    with pytest.raises(UserError, match="needs a diffusers model"):
        student_of(NeuralFlowMap(torch.nn.Identity(), Linear(), (2,)))
