"""A certificate of closed-form maps: exact ones pass, wrong ones are caught, and the verdict says which."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.evaluation import lookahead
from fmtt.evaluation.certify import Certificate, certify
from fmtt.evaluation.certify_bias import PaperBias, paper_bias
from fmtt.evaluation.certify_mismatch import base_sde, mismatch
from fmtt.evaluation.certify_problems import ProductMixture, WrongMap, reward, truth
from fmtt.evaluation.certify_residuals import residuals
from fmtt.flow.oracle import Gaussian
from fmtt.tensor import batch_time
from fmtt.types import Cond, FlowMap, Time


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def certificate(flow_map: FlowMap, **options) -> Certificate:
    small = {"num_samples": 128, "num_particles": 128, "num_steps": 32, "sde_steps": 40, "matrix": None}
    small |= {"residual_samples": 32, "gradient_samples": 4}
    keywords = {"reward": reward("linear", 1), "generator": generator(), "chunk_size": 10_000, **small}
    return certify(flow_map, **{**keywords, **options})


@pytest.fixture(scope="module")
def exact() -> Certificate:
    return certificate(ProductMixture(1))


@pytest.fixture(scope="module")
def wrong() -> Certificate:
    return certificate(WrongMap(1))


def test_an_exact_map_has_no_residuals_and_equivalent_weights(exact):
    for name in ("eulerian", "lagrangian", "semigroup"):
        assert exact.residuals.worst(name) < 1e-9
    assert exact.residuals.dtype == "float64"
    assert exact.verdict.weights == "exact" and exact.verdict.paper == "equivalent"
    assert "equivalent" in exact.verdict.reason
    assert abs(exact.paper_bias.log_z.difference) < 1e-3
    assert min(exact.ascent.cosine["map_1"]) > 0.999


def test_a_wrong_map_is_measured_and_its_bias_detected(wrong):
    assert wrong.residuals.mean("eulerian") > 0.2 and wrong.residuals.mean("semigroup") > 0.1
    assert wrong.paper_bias.significance > 4 and wrong.verdict.paper == "biased"
    assert wrong.verdict.weights == "exact" and "paper's weights would be off" in wrong.verdict.reason


def test_residuals_are_the_analytic_ones():
    """X + a (1 - s) has the Eulerian residual -a, no Lagrangian one, and a known semigroup one."""

    class Shifted(ProductMixture):
        def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
            return x + (batch_time(t, x) - batch_time(s, x))[:, None] * (1 - batch_time(s, x))[:, None]

        def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
            return (1 - batch_time(t, x))[:, None].expand_as(x)

    times, x = (0.0, 0.5), torch.zeros(2, 8, 1, dtype=torch.float64)
    found = residuals(Shifted(1), lookahead.Trajectory(times, x, x[0]))
    # From s = 0 to t: u = 1; d/ds X = -(1 - s) - (t - s), grad X b = 1 - s, so the residual is t - s = t.
    assert found.t == (0.5, 0.95, 1.0)
    assert found.eulerian[0] == pytest.approx([0.5, 0.95, 1.0])
    # d/dt X = 1 against b_t = 1 - t.
    assert found.lagrangian[0][:2] == pytest.approx([0.5, 0.95]) and found.lagrangian[0][2] is None
    # Through m = t / 2: m + (t - m)(1 - m) = t - t² / 4, against t.
    assert found.semigroup[0] == pytest.approx([0.125, 0.95 / 4, 0.25])
    assert found.eulerian[1][0] is None


def test_a_map_that_moves_nothing_is_named():
    class Still(ProductMixture):
        def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
            return 1.0 * x

    x = torch.zeros(2, 8, 1, dtype=torch.float64)
    with pytest.raises(UserError, match="from s=0 to t=0.5: is it trained?"):
        residuals(Still(1), lookahead.Trajectory((0.0, 0.5), x, x[0]))


def without_forward_mode(x: Tensor) -> Tensor:
    return x + 0 * torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum()


def missing(x: Tensor) -> Tensor:
    raise NotImplementedError("no such kernel on this device")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    ((without_forward_mode, UserError, "which it lacks"), (missing, NotImplementedError, "no such kernel")),
    ids=("no forward mode", "something else"),
)
def test_only_a_missing_forward_mode_is_called_one(function, error, message):
    class Made(ProductMixture):
        def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond | None = None) -> Tensor:
            return function(super().__call__(x, s, t, cond))

    x = torch.randn(2, 8, 1, dtype=torch.float64)
    with pytest.raises(error, match=message):
        residuals(Made(1), lookahead.Trajectory((0.0, 0.5), x, x[0]))


def test_a_velocity_that_does_not_fit_its_score_calls_for_path_weights():
    """A velocity too large by half: its ODE has other marginals than the SDE with the score taken from it."""

    class Hasty(Gaussian):
        def velocity(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
            return 1.5 * super().velocity(x, t)

    made = Hasty([1.0], 0.3)
    found = certificate(made, reward=lambda x, cond: x[:, 0], num_samples=600)
    assert found.verdict.weights == "path" and max(found.mismatch.relative()) > 0.1
    assert "do not belong to one law" in found.verdict.reason


def test_no_mismatch_where_there_is_none(exact):
    assert max(exact.mismatch.significance()) < 4
    assert exact.mismatch.steps == (20, 40) and len(exact.mismatch.drift[0]) == len(exact.mismatch.t) == 5
    assert 0 < exact.mismatch.resolution() < 1


def test_the_base_sde_is_the_samplers():
    """Bit for bit the particles of an unguided run from the same noise."""
    law, steps = ProductMixture(2), 10
    result = fmtt.tilt(
        law,
        lambda x, cond: x[:, 0],
        num_particles=50,
        num_steps=steps,
        weights="none",
        gradient="none",
        dtype=torch.float64,
        generator=generator(3),
    )
    again = generator(3)
    x0 = torch.randn(50, 2, generator=again, dtype=torch.float64)
    end = base_sde(law.velocity, law.interpolant, x0, steps, (0.5, 1.0), generator=again)[1]
    assert torch.allclose(end, result.samples, atol=1e-12)


def test_few_steps_still_have_a_state_for_every_time():
    law, x = ProductMixture(1), torch.zeros(5, 1, dtype=torch.float64)
    found = base_sde(law.velocity, law.interpolant, x, 2, (0.1, 0.2, 1.0), generator=generator())
    assert found.shape == (3, 5, 1) and torch.equal(found[0], found[1])


def test_marginals_of_the_discretised_sde_are_told_from_the_odes():
    """Three steps are too few; the drift falls as the steps grow."""
    law = ProductMixture(1)
    trajectory = lookahead.reference(
        law.velocity, 800, (1,), times=(0.2, 0.6), generator=generator(), dtype=torch.float64
    )
    found = mismatch(law.velocity, law.interpolant, trajectory, steps=6, generator=generator(1))
    assert found.significance(0)[-1] > 4
    assert found.relative(0)[-1] > found.relative(1)[-1]


def test_both_rules_see_the_same_particles_and_one_of_them_is_right():
    law, r = WrongMap(1), reward("linear", 1)
    found = paper_bias(law, r, num_particles=500, num_steps=64, dtype=torch.float64, generator=generator(2))
    assert isinstance(found, PaperBias) and len(found.log_z.values) == 16
    assert found.log_z.difference == pytest.approx(0.1, abs=0.02) and found.gap > 0.05
    assert found.log_z.exact == pytest.approx(float(truth("linear", 1).tilted[2]), abs=0.05)


def test_a_reward_without_gradient_calls_for_path_weights():
    def step(x: Tensor, cond: Cond | None = None) -> Tensor:
        return (x[:, 0] > 0).double()

    found = certificate(ProductMixture(1), reward=step, num_samples=16)
    assert found.paper_bias is None and found.verdict.weights == "path" and found.ascent.cosine == {}


def test_without_a_reward_a_linear_probe_is_used_and_runs_repeat():
    small = {"num_samples": 16, "num_particles": 8, "num_steps": 6, "sde_steps": 6, "reward": None}
    a, b = (certificate(ProductMixture(2), **small) for _ in range(2))
    assert a.reward == "a random linear probe of unit variance" and a.matrix == () and a.matrix_holds
    assert a.paper_bias == b.paper_bias and a.verdict == b.verdict
    json.dumps([a.residuals._asdict(), a.ascent._asdict(), a.mismatch._asdict()])


@pytest.mark.parametrize(
    "options, says",
    [
        ({"matrix": "huge"}, "matrix must be one of quick, full or None"),
        ({"num_samples": 2}, "num_samples must be at least 4"),
        ({"num_populations": 1}, "num_populations must be at least 2"),
        ({"cond": {"label": torch.zeros(2)}}, "cond must have one row"),
    ],
)
def test_bad_arguments_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        certificate(ProductMixture(1), **options)


def test_it_is_public():
    assert fmtt.certify is certify
