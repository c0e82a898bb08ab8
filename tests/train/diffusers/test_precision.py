"""Derivatives of networks in half precision, and of those that are too large for the check at the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import train.tangents
from fmtt.errors import UserError
from fmtt.models.diffusers.pretrained import FAMILIES
from tests.models.diffusers.conftest import conditions
from tests.train.diffusers.conftest import SHAPE
from train.__main__ import main
from train.build import build_module
from train.config import Config
from train.losses import LossOutput, Times
from train.losses.base import sample_path

Settings = Callable[..., Config]
HALF = "teacher.dtype=bfloat16"
ROUNDED = "derivative: finite_difference needs a network in float32, this one has weights in bfloat16"


def first_step(config: Config, name: str) -> LossOutput:
    """The loss of a run's first step."""
    module = build_module(config, "distill", SHAPE)
    assert module.teacher is not None
    x_0, x_1 = torch.randn(2, 3, *SHAPE)
    s: Tensor = torch.tensor([0.2, 0.4, 0.6])
    path = sample_path(module.student.interpolant, x_0, x_1, s)
    cond = {key: v for key, v in conditions(name, 3).items() if not key.startswith("negative_")}
    return module.objective(module.student, module.teacher.velocity, path, Times(s, s + 0.1, s + 0.2), cond)


@pytest.mark.parametrize("objective", ["lmd", "emd", "lsd"])
def test_finite_differences_of_a_half_precision_network_are_refused(objective: str, settings: Settings):
    given = (HALF, "derivative=finite_difference", f"objective.name={objective}")
    with pytest.raises(UserError, match=ROUNDED) as caught:
        first_step(settings("sana", *given), "sana")
    assert "\n" not in str(caught.value) and "teacher.dtype" in str(caught.value)


def test_the_run_ends_with_that_line(yaml: Any, words: Any, capsys: Any):
    assert main(["distill", str(yaml), *words("sd3", HALF, "derivative=finite_difference")]) == 2
    error = capsys.readouterr().err
    assert ROUNDED in error and error.rstrip().count("\n") == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_mode_of_every_family_passes_the_check_in_half_precision(name: str, settings: Settings):
    """FLUX.1 rounds 1000 times its guidance scale, 3.5, to its weights' dtype, and the reference does not."""
    given = (HALF, "derivative=jvp", *(["teacher.guidance=3.5"] if name == "flux" else []))
    assert bool(first_step(settings(name, *given), name).per_sample.isfinite().all())


@pytest.mark.parametrize("change", ["derivative=jvp", "derivative=auto", "objective.name=psd"])
def test_what_half_precision_can_do_is_not_refused(change: str, settings: Settings):
    given = (HALF, change, *(["derivative=finite_difference"] if "psd" in change else []))
    assert bool(first_step(settings("sana", *given), "sana").per_sample.isfinite().all())


def test_a_student_too_large_for_the_check_is_said_to_be_unchecked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train.tangents, "LARGEST", 1000)
    with pytest.warns(
        UserWarning, match="derivative: jvp is not checked: .* more than 1,000 parameters"
    ) as w:
        first_step(settings("sd3"), "sd3")
    assert all("\n" not in str(one.message) for one in w)
    with pytest.warns(UserWarning, match="derivative: finite_difference is not checked"):
        first_step(settings("sd3", "derivative=finite_difference"), "sd3")
    with pytest.raises(UserError, match=ROUNDED):
        first_step(settings("sd3", HALF, "derivative=finite_difference"), "sd3")


@pytest.mark.filterwarnings("error:.*is not checked")
def test_nothing_is_said_where_nothing_is_differentiated(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train.tangents, "LARGEST", 1000)
    first_step(settings("sd3", "objective.name=psd"), "sd3")
