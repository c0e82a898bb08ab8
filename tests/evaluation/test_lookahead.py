"""Look-ahead errors against the closed forms of a Gaussian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.evaluation import ascent, lookahead
from fmtt.flow.oracle import Gaussian
from fmtt.tensor import batch_time
from fmtt.types import Cond, Time

MEAN, VARIANCES = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.25, 2.0]).double()


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    return Gaussian(MEAN, VARIANCES)


@pytest.fixture(scope="module")
def trajectory(gaussian: Gaussian) -> lookahead.Trajectory:
    generator = torch.Generator().manual_seed(0)
    return lookahead.reference(
        gaussian.velocity, 3000, (2,), generator=generator, dtype=torch.float64, chunk_size=2000
    )


class Shifted:
    """The exact map plus a known error of the endpoint."""

    def __init__(self, gaussian: Gaussian, shift: float) -> None:
        self.gaussian, self.shift, self.interpolant = gaussian, shift, gaussian.interpolant

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
        return self.gaussian(x, s, t) + self.shift * (batch_time(t, x) - batch_time(s, x))[:, None]

    def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return self.gaussian.velocity(x, t)


def test_reference_stays_on_the_exact_trajectory(gaussian, trajectory):
    for t, x in zip(trajectory.times, trajectory.states, strict=True):
        assert (gaussian(trajectory.states[0], 0.0, t) - x).abs().max() < 1e-5
    assert trajectory.states.shape == (10, 3000, 2) and trajectory.endpoint.shape == (3000, 2)


def test_reference_is_reproducible_and_its_grid_need_not_hold_zero(gaussian):
    def draw(times: tuple[float, ...]) -> lookahead.Trajectory:
        generator = torch.Generator().manual_seed(3)
        return lookahead.reference(gaussian.velocity, 5, (2,), times=times, generator=generator)

    a, b, late = draw((0.0, 0.5)), draw((0.0, 0.5)), draw((0.5, 0.7))
    assert torch.equal(a.states, b.states) and torch.equal(a.endpoint, b.endpoint)
    assert torch.allclose(a.states[1], late.states[0], atol=1e-3)
    with pytest.raises(UserError, match="time 0"):
        lookahead.euler_error(gaussian.velocity, late, 2)


def test_exact_map_has_the_solvers_error(gaussian, trajectory):
    errors = lookahead.lookahead_errors(gaussian, trajectory)
    assert set(errors.rmse) == {"denoiser", "map_1", "map_2", "map_4"}
    for k in (1, 2, 4):
        assert max(errors.rmse[f"map_{k}"]) < 1e-5


def test_denoiser_error_is_the_analytic_one(gaussian, trajectory):
    errors = lookahead.lookahead_errors(gaussian, trajectory)
    for k, t in enumerate(errors.t):
        marginal = (1 - t) ** 2 + t**2 * VARIANCES
        # D(x) and X_{t,1}(x) are affine in x with these slopes, and x_t - t m has variance ``marginal``.
        gap = (t * VARIANCES / marginal - (VARIANCES / marginal).sqrt()) * marginal.sqrt()
        analytic = float(gap.square().mean().sqrt())
        assert abs(errors.rmse["denoiser"][k] - analytic) < 4 * errors.standard_error["denoiser"][k]
        assert errors.standard_error["denoiser"][k] < 0.05 * analytic


def test_known_error_of_a_map_is_measured(gaussian, trajectory):
    errors = lookahead.lookahead_errors(Shifted(gaussian, 0.3), trajectory, map_steps=(1,))
    for t, value in zip(errors.t, errors.rmse["map_1"], strict=True):
        assert value == pytest.approx(0.3 * (1 - t), abs=1e-5)


def test_denoiser_may_be_the_teachers(gaussian, trajectory):
    teacher = lookahead.lookahead_errors(gaussian, trajectory, velocity=lambda x, t, cond=None: -x)
    own = lookahead.lookahead_errors(gaussian, trajectory)
    assert teacher.rmse["denoiser"] != own.rmse["denoiser"]
    assert teacher.rmse["map_1"] == own.rmse["map_1"]


def test_chunks_do_not_change_the_errors(gaussian, trajectory):
    whole = lookahead.lookahead_errors(gaussian, trajectory, chunk_size=5000)
    parts = lookahead.lookahead_errors(gaussian, trajectory, chunk_size=700)
    assert whole.rmse["denoiser"] == pytest.approx(parts.rmse["denoiser"], rel=1e-12)


def test_teacher_nfe_matched_is_the_smallest_number_of_steps(gaussian, trajectory):
    few = trajectory.first(200)
    euler = {n: lookahead.euler_error(gaussian.velocity, few, n) for n in range(1, 65)}
    for target in (1e9, euler[1], euler[2] * 1.001, euler[11] * 1.0001, euler[11] * 0.9999, euler[64], 0.0):
        errors = lookahead.LookaheadErrors((0.0,), {"denoiser": [0.0], "map_1": [target]}, {})
        matched = lookahead.teacher_nfe_matched(gaussian.velocity, few, errors)
        assert matched == {"map_1": min((n for n, e in euler.items() if e <= target), default=64)}


def test_reward_error_and_gradient_cosine_of_a_linear_reward(gaussian, trajectory):
    a = torch.tensor([1.0, 0.6]).double()
    result = ascent.reward_errors(gaussian, trajectory, lambda x, cond: x @ a, gradient_samples=4)
    for k, t in enumerate(result.t):
        marginal = (1 - t) ** 2 + t**2 * VARIANCES
        exact, denoiser = (VARIANCES / marginal).sqrt() * a, t * VARIANCES / marginal * a
        gap = float(((denoiser - exact) * marginal.sqrt()).square().sum().sqrt())
        error = result.reward_standard_error["denoiser"][k]
        assert abs(result.reward_rmse["denoiser"][k] - gap) < 4 * error
        assert result.reward_rmse["map_1"][k] < 1e-4
        for name, slope in (("none", a), ("denoiser", denoiser), ("map_4", exact)):
            expected = float(torch.nn.functional.cosine_similarity(slope, exact, dim=0, eps=0).nan_to_num(0))
            assert result.cosine[name][k] == pytest.approx(expected, abs=1e-6)


def test_reward_without_gradient_has_no_cosines(gaussian, trajectory):
    result = ascent.reward_errors(
        gaussian, trajectory.first(10), lambda x, cond: (x > 0).double().sum(1), gradient_samples=0
    )
    assert result.cosine == {} and len(result.reward_rmse["map_1"]) == 10


@pytest.mark.parametrize("times", [(), (0.5, 0.2), (0.0, 1.0), (-0.1,)])
def test_bad_times_are_refused(gaussian, times):
    with pytest.raises(UserError, match="times must increase"):
        lookahead.reference(gaussian.velocity, 2, (2,), times=times)
