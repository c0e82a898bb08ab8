"""Where particles start: states handed over, images to edit, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import fmtt
from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.flow.oracle import Gaussian
from fmtt.models.config import NETWORKS


def tilt(flow: Any, reward: Any, seed: int = 0, **options: Any) -> fmtt.TiltResult:
    return fmtt.tilt(
        flow, reward, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), **options
    )


def test_an_image_handed_over_takes_the_maps_precision_and_is_checked() -> None:
    flow_map = NeuralFlowMap(NETWORKS["mlp"]((2,), width=8, depth=1), Linear(), (2,))
    options: dict[str, Any] = {"t_start": 0.5, "num_particles": 3, "num_steps": 2, "weights": "path"}

    def start(x: torch.Tensor, **more: Any) -> Any:
        return fmtt.tilt(flow_map, lambda y, cond: y.sum(1), x_init=x, **options, **more)

    assert start(torch.zeros(1, 2, dtype=torch.float64)).samples.dtype == torch.float32
    for wrong, message in (
        (torch.zeros(1, 2, dtype=torch.uint8), "finite numbers in the scale of the data, got torch.uint8"),
        (torch.full((1, 2), float("nan")), "finite numbers"),
        (torch.zeros(1, 5), r"rows of shape \(5,\), the data have \(2,\)"),
    ):
        with pytest.raises(UserError, match=message):
            start(wrong, x_init_is="clean")
    with pytest.raises(UserError, match="says what x_init is"):
        fmtt.tilt(flow_map, lambda y, cond: y.sum(1), num_particles=3, x_init_is="clean")


def test_start_from_given_states() -> None:
    """The base law is the push-forward of the given states; here their conditional law is Gaussian."""
    flow = Gaussian([0.5], 0.3)
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    options = {"x_init": x, "t_start": 0.6, "num_particles": 20_000, "num_steps": 80}
    base = tilt(flow, lambda x, c: 0 * x[:, 0], weights="path", **options)
    tilted = tilt(flow, lambda x, c: 2.0 * x[:, 0], weights="path", seed=1, **options)
    mean, variance, n = base.samples.mean(), base.samples.var(), len(base.samples)
    found = tilted.expect(lambda x: x[:, 0])
    # The variance of a Gaussian's sample variance is 2 v^2 / n.
    error = (found.standard_error**2 + variance / n + 2**2 * 2 * variance**2 / n).sqrt()
    assert abs(found.value - (mean + 2 * variance)) < 4 * error < 0.2 * variance
    assert "t=0.6" in tilted.base_law


def test_editing_noises_each_particle_of_a_clean_sample() -> None:
    """States noised by hand and samples noised by the library start from one law, which the result names."""
    flow, clean = Gaussian([0.5], 0.3), torch.full((1, 1), 0.7, dtype=torch.float64)
    options = {"num_particles": 20_000, "num_steps": 40, "t_start": 0.6, "weights": "path"}

    def half(x: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return 1.5 * x[:, 0] - x[:, 0].square() / 2

    edited = tilt(flow, half, x_init=clean, x_init_is="clean", **options)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    noised = tilt(flow, half, x_init=0.4 * noise + 0.6 * clean, **options)
    a, b = (r.expect(lambda x: x[:, 0]) for r in (edited, noised))
    assert abs(a.value - b.value) < 4 * (a.standard_error**2 + b.standard_error**2).sqrt()
    assert "samples noised by the interpolant to t=0.6" in edited.base_law
    assert "given states at t=0.6" in noised.base_law


def test_exact_weights_of_an_edit_are_refused_for_they_are_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noised samples do not have the velocity's own law; without noise there is no score to get wrong."""
    flow, clean = Gaussian([0.5], 0.3), torch.full((1, 1), 2.0, dtype=torch.float64)

    def reward(x: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return 2.0 * x[:, 0]

    options = {"x_init": clean, "x_init_is": "clean", "t_start": 0.5}
    small = {**options, "num_particles": 4, "num_steps": 2}
    for weights in ("exact", "paper"):
        with pytest.raises(UserError, match=r"noised to t=0.5 .* use weights='path'"):
            tilt(flow, reward, weights=weights, **small)
    tilt(flow, reward, weights="exact", noise=0.0, **small)
    tilt(flow, reward, weights="exact", **{**small, "t_start": 0.0})
    # States may have that law; whoever gives them has to know.
    drawn = "provided that .* and the states are drawn from its law there"
    for change, conditional in (({}, True), ({"noise": 0.0}, False)):
        law = tilt(flow, reward, weights="exact", **{**small, "x_init_is": "state", **change}).base_law
        assert bool(re.search(drawn, law)) is conditional
    # What is refused is indeed biased: the tilt of the unguided SDE's own law, by path weights, differs.
    monkeypatch.setattr("fmtt.steering.rule._check_continuous", lambda *_: None)
    options |= {"num_particles": 500, "num_steps": 100, "num_populations": 16}
    exact, path = (tilt(flow, reward, weights=w, **options).log_z for w in ("exact", "path"))
    assert (exact.mean() - path.mean()).abs() > 4 * ((exact.var() + path.var()) / 16).sqrt()
