"""Interpolants: boundary values, derivatives, and the conversions as inverses of one another."""

from __future__ import annotations

import math

import pytest
import torch

from fmtt.flow.interpolant import INTERPOLANTS, Interpolant, Linear, Trigonometric

PATHS = [Linear(), Trigonometric()]
pytestmark = pytest.mark.parametrize("path", PATHS, ids=repr)


def draw(n: int = 64, shape: tuple[int, ...] = (3, 2)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, x1 = torch.randn(2, n, *shape, dtype=torch.float64)
    return x0, x1, 0.05 + 0.9 * torch.rand(n, dtype=torch.float64)


def test_path_runs_from_noise_to_data(path: Interpolant):
    x0, x1, _ = draw()
    torch.testing.assert_close(path.interpolate(x0, x1, 0.0), x0, rtol=0, atol=0)
    torch.testing.assert_close(path.interpolate(x0, x1, 1.0), x1, rtol=0, atol=0)


def test_derivatives_match_finite_differences(path: Interpolant):
    x0, x1, t = draw()
    h = 1e-5
    difference = (path.interpolate(x0, x1, t + h) - path.interpolate(x0, x1, t - h)) / (2 * h)
    torch.testing.assert_close(path.data_velocity(x0, x1, t), difference, rtol=0, atol=1e-8)


def test_wronskian(path: Interpolant):
    _, x1, t = draw()
    expected = 1.0 if path.name == "linear" else math.pi / 2
    torch.testing.assert_close(
        path.coefficients(t, x1).wronskian, torch.full((64, 1, 1), expected, dtype=torch.float64)
    )


def test_conversions_recover_both_ends_of_a_known_pair(path: Interpolant):
    """With one pair (x0, x1) the conditional velocity determines both ends exactly."""
    x0, x1, t = draw()
    x, b = path.interpolate(x0, x1, t), path.data_velocity(x0, x1, t)
    torch.testing.assert_close(path.denoiser(b, x, t), x1, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.noise(b, x, t), x0, rtol=0, atol=1e-12)
    alpha = path.coefficients(t, x).alpha
    torch.testing.assert_close(path.score(b, x, t), -x0 / alpha, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["denoiser", "noise", "score"])
def test_conversions_round_trip(path: Interpolant, name: str):
    x, b, t = draw()
    there = getattr(path, name)(b, x, t)
    back = getattr(path, f"velocity_from_{name}")(there, x, t)
    torch.testing.assert_close(back, b, rtol=0, atol=1e-12)


def test_denoiser_and_noise_are_finite_at_both_ends(path: Interpolant):
    x, b, _ = draw()
    for t in (0.0, 1.0):
        assert path.denoiser(b, x, t).isfinite().all() and path.noise(b, x, t).isfinite().all()
    torch.testing.assert_close(path.denoiser(b, x, 1.0), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.noise(b, x, 0.0), x, rtol=0, atol=1e-12)
    assert path.score(b, x, 0.0).isfinite().all() and not path.score(b, x, 1.0).isfinite().all()


def test_each_sample_has_its_own_time(path: Interpolant):
    """Also where the batch size equals a data dimension, which would broadcast wrongly unnoticed."""
    x0, x1, t = draw(n=3, shape=(3, 3))
    together = path.interpolate(x0, x1, t)
    alone = torch.cat([path.interpolate(x0[i : i + 1], x1[i : i + 1], float(t[i])) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-15)


def test_times_of_a_wrong_shape_are_refused(path: Interpolant):
    x0, x1, t = draw()
    with pytest.raises(ValueError, match=r"shape \(64,\), got \(5,\)"):
        path.interpolate(x0, x1, t[:5])
    with pytest.raises(ValueError, match="shape"):
        path.interpolate(x0, x1, t[:, None])


def test_half_precision_keeps_its_dtype_and_precise_times(path: Interpolant):
    x0, x1, t = (v.bfloat16() for v in draw())
    x = path.interpolate(x0, x1, 0.999)
    assert x.dtype == path.denoiser(x0, x, t).dtype == torch.bfloat16
    alpha = path.coefficients(0.999, x1).alpha  # 1 - 0.999 is 0 if the time is rounded to bfloat16
    assert (alpha > 0.0009).all()


def test_table_knows_the_path_by_name(path: Interpolant):
    assert isinstance(path, INTERPOLANTS[path.name])
