"""The closed forms against what defines them: quadrature, continuity, transport of mass, sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fmtt.flow import oracle_flow
from fmtt.flow.interpolant import Interpolant, Linear, Trigonometric
from fmtt.flow.ode import solve
from fmtt.flow.oracle import Gaussian, GaussianMixture
from fmtt.types import FlowMap

PATHS = [Linear(), Trigonometric()]
per_path = pytest.mark.parametrize("path", PATHS, ids=repr)
FULL = [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]


def gaussian(path: Interpolant | None = None) -> Gaussian:
    return Gaussian([0.5, -1.0], [[1.0, 0.4], [0.4, 0.5]], path)


def mixture_1d(path: Interpolant | None = None, steps: int = 64) -> GaussianMixture:
    return GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [0.2, 0.35], path, steps=steps)


def mixture_2d(path: Interpolant | None = None, steps: int = 64) -> GaussianMixture:
    return GaussianMixture([0.3, 0.7], [[-1.5, 0.0], [1.0, 0.5]], FULL, path, steps=steps)


def draw(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    x, s = 1.5 * torch.randn(n, d, dtype=torch.float64), torch.rand(n, dtype=torch.float64)
    return x, s, s + (1 - s) * torch.rand(n, dtype=torch.float64)


@per_path
@pytest.mark.parametrize("make", [gaussian, mixture_1d, mixture_2d])
class TestFields:
    def test_conversions_agree_with_the_interpolant(self, make, path: Interpolant):
        field = make(path)
        x, _, t = draw(64, field.data_shape[0])
        b = field.velocity(x, t)
        for name in ("denoiser", "noise", "score"):
            expected = getattr(path, name)(b, x, t)
            torch.testing.assert_close(getattr(field, name)(x, t), expected, rtol=1e-9, atol=1e-9)

    def test_score_is_the_gradient_of_the_log_density(self, make, path: Interpolant):
        field = make(path)
        x, _, t = draw(64, field.data_shape[0])
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(field.log_density(x, t).sum(), x)
        torch.testing.assert_close(field.score(x, t), gradient, rtol=0, atol=1e-10)

    def test_continuity_equation(self, make, path: Interpolant):
        """d/dt log rho + b . grad log rho + div b = 0 ties the velocity to the density."""
        field = make(path)
        x, _, t = draw(64, field.data_shape[0])
        x.requires_grad_()
        t.requires_grad_()
        score, rate = torch.autograd.grad(field.log_density(x, t).sum(), (x, t))
        b = field.velocity(x, t)
        divergence = sum(
            torch.autograd.grad(b[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])
        )
        assert (rate + (b * score).sum(1) + divergence).abs().max() < 1e-9

    def test_noise_at_the_start_and_data_at_the_end(self, make, path: Interpolant):
        field = make(path)
        x, _, _ = draw(64, field.data_shape[0])
        normal = -x.square().sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi)
        torch.testing.assert_close(field.log_density(x, 0.0), normal, rtol=0, atol=1e-12)
        torch.testing.assert_close(field.denoiser(x, 1.0), x, rtol=0, atol=1e-12)
        assert field.score(x, 1.0).isfinite().all() and field.velocity(x, 1.0).isfinite().all()

    def test_samples_have_the_mean_of_the_interpolant(self, make, path: Interpolant, generator):
        field, n, t = make(path), 20_000, 0.6
        x1 = field.sample(n, generator)
        direct = field.sample(n, generator, t)
        x0 = torch.randn(x1.shape, generator=generator, dtype=x1.dtype)
        joined = path.interpolate(x0, x1, t)
        for f in (lambda x: x, lambda x: x.square(), lambda x: (x > 0).double()):
            gap = f(direct).mean(0) - f(joined).mean(0)
            se = ((f(direct).var(0) + f(joined).var(0)) / n).sqrt()
            assert (gap.abs() < 4 * se).all()

    def test_is_a_flow_map(self, make, path: Interpolant):
        field = make(path)
        assert isinstance(field, FlowMap) and field.interpolant is path

    def test_float32_follows_float64(self, make, path: Interpolant):
        field = make(path)
        x, s, t = draw(64, field.data_shape[0])
        narrow = field(x.float(), s.float(), t.float())
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), field(x, s, t), rtol=1e-4, atol=1e-4)


@per_path
class TestMixtureMap:
    def test_moves_mass_exactly_in_one_dimension(self, path: Interpolant):
        """On the line the flow keeps quantiles: F_t(X_{s,t}(x)) = F_s(x)."""
        mixture = mixture_1d(path, steps=128)
        x, s, t = draw(256, 1)

        def cdf(x: Tensor, t: Tensor) -> Tensor:
            alpha, beta = path.alpha(t)[:, None], path.beta(t)[:, None]
            std = (alpha**2 + beta**2 * mixture.variances[:, 0]).sqrt()  # (B, K)
            z = (x - beta * mixture.means[:, 0]) / std
            return (mixture.weights * torch.special.ndtr(z)).sum(1)

        assert (cdf(mixture(x, s, t), t) - cdf(x, s)).abs().max() < 1e-8
        assert (cdf(mixture(x, t, s), s) - cdf(x, t)).abs().max() < 1e-8

    def test_semigroup_to_the_tolerance_of_its_steps(self, path: Interpolant):
        x, s, t = draw(256, 2)
        u = s + 0.37 * (t - s)
        gaps = []
        for steps in (32, 64):
            mixture = mixture_2d(path, steps=steps)
            gaps.append(float((mixture(mixture(x, s, u), u, t) - mixture(x, s, t)).abs().max()))
        assert gaps[1] < 1e-6 and gaps[1] < gaps[0]

    def test_lagrangian_and_eulerian_by_finite_differences(self, path: Interpolant):
        mixture, h = mixture_2d(path, steps=128), 1e-4
        x, s, t = draw(128, 2)
        s, t = 0.05 + 0.9 * s, 0.05 + 0.9 * t
        end = mixture(x, s, t)
        lagrangian = (mixture(x, s, t + h) - mixture(x, s, t - h)) / (2 * h) - mixture.velocity(end, t)
        b = mixture.velocity(x, s)
        eulerian = (mixture(x + h * b, s + h, t) - mixture(x - h * b, s - h, t)) / (2 * h)
        assert lagrangian.abs().max() < 1e-5 and eulerian.abs().max() < 1e-5

    def test_agrees_with_the_adaptive_solver(self, path: Interpolant):
        mixture = mixture_2d(path, steps=128)
        x, _, _ = draw(64, 2)
        end = solve(mixture.velocity, x, 0.1, 1.0, tol=1e-10)
        torch.testing.assert_close(mixture(x, 0.1, 1.0), end, rtol=0, atol=1e-6)

    def test_derivatives_of_first_and_second_order(self, path: Interpolant):
        mixture = mixture_2d(path)
        x, s, t = (v.requires_grad_() for v in draw(2, 2))
        assert torch.autograd.gradcheck(mixture, (x, s, t), check_forward_ad=True, atol=1e-5)
        assert torch.autograd.gradgradcheck(lambda *v: mixture(*v).sin(), (x, s, t), atol=1e-4)

    def test_one_component_is_the_gaussian(self, path: Interpolant):
        exact = gaussian(path)
        single = GaussianMixture([1.0], exact.mean[None], exact.covariance[None], path, steps=128)
        x, s, t = draw(64, 2)
        torch.testing.assert_close(single(x, s, t), exact(x, s, t), rtol=0, atol=1e-8)


def test_particles_do_not_depend_on_their_company(monkeypatch: pytest.MonkeyPatch):
    """Neither chunks, nor the shortcut for one common time, nor recording a graph changes a value."""
    mixture = mixture_2d()
    x, _, _ = draw(50, 2)
    s, t = torch.full((50,), 0.2, dtype=torch.float64), torch.full((50,), 0.9, dtype=torch.float64)
    whole = mixture(x, s, t)
    monkeypatch.setattr(oracle_flow, "CHUNK", 16)
    torch.testing.assert_close(mixture(x, s, t), whole, rtol=0, atol=1e-14)
    late = torch.cat([s[:-1], s[-1:] + 1e-9])
    torch.testing.assert_close(mixture(x, late, t)[:-1], whole[:-1], rtol=0, atol=1e-14)
    assert mixture(x[:0], s[:0], t[:0]).shape == (0, 2)


def test_diagonal_and_full_covariances_agree():
    diagonal = torch.tensor([[0.3, 0.2], [0.2, 0.4]], dtype=torch.float64)
    means = [[-1.5, 0.0], [1.0, 0.5]]
    narrow = GaussianMixture([1.0, 2.0], means, diagonal)
    full = GaussianMixture([1.0, 2.0], means, torch.diag_embed(diagonal))
    x, s, t = draw(32, 2)
    torch.testing.assert_close(narrow(x, s, t), full(x, s, t))
    torch.testing.assert_close(narrow.log_density(x, t), full.log_density(x, t))


class TestTilts:
    a1, A1 = torch.tensor([0.8], dtype=torch.float64), torch.tensor([[0.9]], dtype=torch.float64)

    @pytest.mark.parametrize("make", [mixture_1d, lambda: Gaussian([0.5], [[0.7]])])
    @pytest.mark.parametrize("quadratic", [False, True])
    def test_against_quadrature(self, make, quadratic: bool):
        base = make()
        x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
        reward = x[:, 0] * self.a1 + (x[:, 0].square() * self.A1[0] / 2 if quadratic else 0)
        tilted, log_z = base.tilt_quadratic(self.A1, self.a1) if quadratic else base.tilt_linear(self.a1)
        density = (base.log_density(x) + reward).exp()
        z = torch.trapezoid(density, x[:, 0])
        assert abs(float(log_z - z.log())) < 1e-10
        torch.testing.assert_close(tilted.log_density(x).exp(), density / z, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("make", [gaussian, mixture_2d])
    @pytest.mark.parametrize("quadratic", [False, True])
    def test_against_importance_sampling(self, make, quadratic: bool, generator: torch.Generator):
        base, n = make(), 100_000
        a = torch.tensor([0.7, -0.4], dtype=torch.float64)
        A = torch.tensor([[0.3, -0.2], [-0.2, -0.5]], dtype=torch.float64)
        x = base.sample(n, generator)
        reward = x @ a + (torch.einsum("ni,ij,nj->n", x, A, x) / 2 if quadratic else 0)
        tilted, log_z = base.tilt_quadratic(A, a) if quadratic else base.tilt_linear(a)
        w = reward.exp()
        assert abs(w.mean() - log_z.exp()) < 4 * w.std() / math.sqrt(n)
        own = tilted.sample(n, generator)
        for f in (lambda x: x[:, 0], lambda x: x[:, 0] * x[:, 1], lambda x: (x[:, 1] > 0).double()):
            weighted = (w * f(x)).mean() / w.mean()
            se_weighted = (w * (f(x) - weighted)).std() / w.mean() / math.sqrt(n)
            se = (se_weighted.square() + f(own).var() / n).sqrt()
            assert abs(weighted - f(own).mean()) < 4 * se

    def test_linear_is_the_quadratic_with_no_curvature(self):
        a = torch.tensor([0.7, -0.4], dtype=torch.float64)
        for base in (gaussian(), mixture_2d()):
            linear, log_z = base.tilt_linear(a)
            quadratic, log_z_too = base.tilt_quadratic(torch.zeros(2, 2), a)
            x, _, t = draw(32, 2)
            torch.testing.assert_close(log_z, log_z_too)
            torch.testing.assert_close(linear.log_density(x, t), quadratic.log_density(x, t))

    def test_only_the_symmetric_part_of_the_matrix_counts(self):
        A = torch.tensor([[0.1, 0.6], [-0.2, -0.3]], dtype=torch.float64)
        (one, log_z), (two, log_z_too) = (mixture_2d().tilt_quadratic(m) for m in (A, A.mT))
        torch.testing.assert_close(log_z, log_z_too)
        torch.testing.assert_close(one.means, two.means)

    def test_keeps_path_and_steps(self):
        tilted, _ = mixture_1d(Trigonometric(), steps=17).tilt_linear(self.a1)
        assert tilted.steps == 17 and tilted.interpolant.name == "trigonometric"

    def test_a_tilt_of_infinite_mass_is_refused(self):
        for base in (mixture_1d(), Gaussian([0.0], [[1.0]])):
            with pytest.raises(ValueError, match="too large"):
                base.tilt_quadratic(torch.tensor([[6.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0], [[0.0]], [1.0]), "weights"),
        (([1.0], [[0.0]], [1.0, 1.0]), "covariances must be"),
        (([1.0, -1.0], [[0.0], [1.0]], [1.0, 1.0]), "weights must be positive"),
        (([1.0], [[0.0]], [0.0]), "positive definite"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
    ],
)
def test_impossible_mixtures_are_refused(arguments, message: str):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)
