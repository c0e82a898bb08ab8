"""student.checkpointing: the same gradient from fewer kept tensors, also of objectives with a derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fmtt.models.diffusers.pretrained import FAMILIES
from fmtt.models.diffusers.student import trained_parameters
from tests.models.diffusers.conftest import conditions
from tests.train.diffusers.conftest import SHAPE
from train.build import build_module
from train.config import Config
from train.losses import OBJECTIVES, Times
from train.losses.base import sample_path

Settings = Callable[..., Config]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_and_fewer_tensors_are_kept(name: str, settings: Settings):
    cond, generator = conditions(name, 3), torch.Generator().manual_seed(0)
    x_0, x_1 = torch.randn(2, 3, *SHAPE, generator=generator)
    s = torch.tensor([0.2, 0.4, 0.6])
    times = Times(s, s + 0.05, s + 0.1)
    found: dict[bool, list[dict[str, Tensor]]] = {}
    kept: dict[bool, list[int]] = {}
    for on in (False, True):
        module = build_module(settings(name, f"student.checkpointing={str(on).lower()}"), "distill", SHAPE)
        weights = trained_parameters(module.student)
        redrawn = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in weights.values():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=redrawn))
        path = sample_path(module.student.interpolant, x_0, x_1, s)
        assert module.teacher is not None
        found[on], kept[on] = [], []
        for objective in ("lmd", "emd"):
            sizes: dict[int, int] = {}

            def pack(saved: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[saved.data_ptr()] = saved.nbytes
                return saved

            with saved_tensors_hooks(pack, lambda saved: saved):
                loss = OBJECTIVES[objective](module.student, module.teacher.velocity, path, times, cond)
            kept[on].append(sum(sizes.values()))
            gradient = torch.autograd.grad(loss.per_sample.mean(), list(weights.values()), allow_unused=True)
            named = zip(weights, gradient, strict=True)
            found[on].append({key: g for key, g in named if g is not None})
    for one, two, plain, few in zip(found[False], found[True], kept[False], kept[True], strict=True):
        assert one.keys() == two.keys() and max(float(g.norm()) for g in one.values()) > 1e-3
        size = torch.stack([g.norm() for g in one.values()]).norm()
        assert torch.stack([(one[key] - two[key]).norm() for key in one]).norm() < 1e-4 * size
        assert few < 0.5 * plain
