"""Inverse problems: operators, likelihoods, gradients, files, and the posterior that a tilt samples."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt import png
from fmtt.errors import UserError
from fmtt.flow.oracle import Gaussian
from fmtt.rewards import build
from fmtt.rewards.inverse import Blur, Inpainting, LinearInverse, SuperResolution

UNIT = (0.0, 1.0)
HOLE = (0.25, 0.25, 0.75, 0.75)


def problems(x: Tensor) -> list[LinearInverse]:
    """One of each on images like x (B, C, 8, 8) whose measurements are all 0."""
    C, H, W = x.shape[1:]
    return [
        SuperResolution(torch.zeros(C, H // 4, W // 4), 4, 0.3, UNIT),
        Inpainting(torch.zeros(C, H, W), 0.3, box=HOLE, value_range=UNIT),
        Blur(torch.zeros(C, H, W), 0.7, 0.3, UNIT),
    ]


def with_measurement(problem: LinearInverse, measurement: Tensor) -> LinearInverse:
    problem.measurement = measurement
    return problem


@pytest.fixture
def x(generator) -> Tensor:
    return torch.rand(3, 2, 8, 8, generator=generator, dtype=torch.float64)


def test_super_resolution_averages_blocks(x):
    reward = SuperResolution(torch.zeros(2, 2, 2), 4, 0.3, UNIT)
    torch.testing.assert_close(reward.forward(x)[1, 1, 1, 0], x[1, 1, 4:, :4].mean())


def test_inpainting_knows_all_but_the_hole(x):
    reward = Inpainting(torch.zeros(2, 8, 8), box=HOLE, value_range=UNIT)
    inside = torch.zeros(8, 8)
    inside[2:6, 2:6] = 1
    assert torch.equal(reward.known(x), (1 - inside).double())
    assert reward.num_measured(x) == 2 * (64 - 16)
    other = x + 5 * inside
    torch.testing.assert_close(reward(other), reward(x))


def test_blur_of_a_point_is_the_kernel_and_a_constant_stays(x):
    reward = Blur(torch.zeros(1, 15, 15), 1.2, value_range=UNIT)
    point = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    point[..., 7, 7] = 1
    kernel = reward.kernel()
    torch.testing.assert_close(reward.forward(point)[0, 0, 3:12, 3:12], torch.outer(kernel, kernel))
    offsets = torch.arange(-4, 5, dtype=torch.float64)
    assert float((kernel * offsets.square()).sum().sqrt()) == pytest.approx(1.2, rel=0.02)
    torch.testing.assert_close(reward.forward(torch.full_like(point, 0.3)), torch.full_like(point, 0.3))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_operator_is_linear(which, x):
    reward = problems(x)[which]
    left = reward.forward(2 * x[:1] - 3 * x[1:2])
    torch.testing.assert_close(left, 2 * reward.forward(x[:1]) - 3 * reward.forward(x[1:2]))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_score_is_a_gaussian_log_likelihood(which, x):
    """Against torch's own Gaussian density of the measured numbers."""
    reward = with_measurement(problems(x)[which], problems(x)[which].forward(x[2:])[0])
    mean, target = reward.forward(x), reward.measurement
    density = torch.distributions.Normal(mean, 0.3).log_prob(target)
    if isinstance(reward, Inpainting):
        density = density * reward.known(x)
    found = reward(x) + reward.log_normaliser(x)
    torch.testing.assert_close(found, density.flatten(1).sum(1))
    assert reward(x)[2] == 0 and (reward(x)[:2] < 0).all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients(which, x, check_gradient):
    check_gradient(problems(x)[which], x)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_scores_do_not_depend_on_the_models_values(which, x):
    reward, other = problems(x)[which], problems(x)[which]
    other.value_range = (-1.0, 1.0)
    torch.testing.assert_close(other(2 * x - 1), reward(x))


def test_measurements_come_from_files(tmp_path, generator):
    from safetensors.torch import save_file

    rgb = torch.randint(0, 256, (3, 8, 8), generator=generator) / 255
    png.write(tmp_path / "y.png", rgb)
    save_file({"y": rgb.double()}, tmp_path / "y.safetensors")
    for name in ("y.png", "y.safetensors"):
        spec = f"inpainting:measurement={tmp_path / name},noise=0.5,box=0.25:0.25:0.75:0.75"
        reward = build(spec, value_range=(-0.5, 0.5))
        assert float(reward((rgb - 0.5)[None], None)) == pytest.approx(0, abs=1e-9)
        assert repr(reward) == spec
    grey = (rgb * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0, keepdim=True)
    blurred = Blur(str(tmp_path / "y.png"), 0.5, value_range=UNIT)
    assert blurred(grey[None]).item() > blurred(grey.flip(-1)[None]).item()


def test_pillow_reads_grey_palette_and_transparent_pictures(tmp_path):
    from PIL import Image

    from fmtt.rewards.picture import load

    Image.new("L", (3, 2), 51).save(tmp_path / "grey.png")
    torch.testing.assert_close(load(tmp_path / "grey.png"), torch.full((1, 2, 3), 0.2))
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    torch.testing.assert_close(load(tmp_path / "clear.png"), torch.ones(3, 2, 3))
    Image.new("RGB", (3, 2), (255, 0, 0)).convert("P").save(tmp_path / "palette.png")
    assert load(tmp_path / "palette.png")[:, 0, 0].tolist() == [1, 0, 0]


def test_without_pillow_a_picture_says_what_is_missing(tmp_path, monkeypatch):
    png.write(tmp_path / "y.png", torch.zeros(3, 2, 2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="needs Pillow: pip install"):
        build(f"blur:measurement={tmp_path / 'y.png'}")


def gaussian() -> tuple[Gaussian, Tensor]:
    """A correlated Gaussian over 4 × 4 pictures, and its covariance."""
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    covariance = 0.25 * torch.exp(-torch.cdist(place, place).square() / 4) + 0.05 * torch.eye(16).double()
    return Gaussian(torch.linspace(0.2, 0.8, 16, dtype=torch.float64), covariance), covariance


def matrix(problem: LinearInverse) -> Tensor:
    """A as a matrix (M, 16), one column per pixel."""
    basis = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    return problem.forward(basis).flatten(1).T


def posterior(problem: LinearInverse, noise: float) -> tuple[Tensor, float]:
    """(mean (16,), log-evidence) of the Gaussian given the measurement, by Kalman's formula."""
    law, covariance = gaussian()
    A = matrix(problem)
    y = problem.observed(problem.measurement).flatten()
    rows = A.abs().sum(1) > 0
    A, y = A[rows], y[rows]
    S = A @ covariance @ A.T + noise**2 * torch.eye(len(y), dtype=torch.float64)
    gain = torch.linalg.solve(S, A @ covariance).T
    evidence = torch.distributions.MultivariateNormal(A @ law.mean, S).log_prob(y)
    return law.mean + gain @ (y - A @ law.mean), float(evidence)


MEASURED = {
    "super_resolution": SuperResolution(
        torch.tensor([[[0.9, 0.1], [0.6, 0.8]]], dtype=torch.float64), 2, 0.3, UNIT
    ),
    "inpainting": Inpainting(
        torch.linspace(0.9, 0.1, 16, dtype=torch.float64).reshape(1, 4, 4),
        0.5,
        box=(0, 0, 1, 0.75),
        value_range=UNIT,
    ),
    "blur": Blur(torch.linspace(0.9, 0.1, 16, dtype=torch.float64).reshape(1, 4, 4), 0.6, 0.8, UNIT),
}


@pytest.fixture(scope="module")
def tilted():
    """E[x] and log Z of each problem's tilt, with standard errors from 12 populations, each computed once."""
    known: dict[str, tuple[Tensor, Tensor]] = {}

    def of(name: str) -> tuple[Tensor, Tensor]:
        if name not in known:
            P, problem = 12, MEASURED[name]
            result = fmtt.tilt(
                gaussian()[0],
                lambda x1, cond=None: problem(x1.reshape(-1, 1, 4, 4)),
                num_particles=1500,
                num_populations=P,
                num_steps=12,
                weights="path",
                kernel="renoise",  # with an exact map its base law is the Gaussian at any number of steps
                ess_threshold=0.9,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(3),
            )
            values = torch.cat([result.expect(lambda x: x).value, result.log_z[:, None]], 1)
            known[name] = values.mean(0), values.std(0) / math.sqrt(P)
        return known[name]

    return of


def deviations(found: tuple[Tensor, Tensor], problem: LinearInverse, noise: float) -> Tensor:
    """Standard errors between the estimates and the posterior mean and log-evidence for this noise, (17,)."""
    mean, evidence = posterior(problem, noise)
    log_z = evidence - problem.log_normaliser(torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    truth = torch.cat([mean, torch.tensor([log_z], dtype=torch.float64)])
    return (found[0] - truth).abs() / found[1]


@pytest.mark.parametrize("name", MEASURED)
def test_a_tilted_gaussian_is_the_posterior(name, tilted):
    found, problem = tilted(name), MEASURED[name]
    effect = (posterior(problem, problem.noise)[0] - gaussian()[0].mean).norm()
    assert found[1][:16].norm() < 0.1 * effect  # the standard errors resolve what the measurement does
    assert (deviations(found, problem, problem.noise) < 4).all()


@pytest.mark.parametrize("name", MEASURED)
def test_a_wrong_noise_level_is_caught(name, tilted):
    problem = MEASURED[name]
    for factor in (0.8, 1.25):
        assert deviations(tilted(name), problem, factor * problem.noise)[:16].max() > 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(torch.zeros(8, 8)), "measurement must be finite, of shape"),
        (lambda: Blur(torch.full((1, 8, 8), math.nan)), "measurement must be finite"),
        (lambda: Blur(torch.zeros(1, 8, 8), noise=0.0), "noise must be positive"),
        (lambda: Blur(torch.zeros(1, 8, 8), width=-1.0), "width must be positive"),
        (lambda: Blur(torch.zeros(1, 8, 8), 3.0)(torch.zeros(1, 1, 8, 8)), "blurs beyond images of 8 × 8"),
        (lambda: SuperResolution(torch.zeros(1, 2, 2), 0), "factor must be at least 1"),
        (lambda: SuperResolution(torch.zeros(1, 2, 2), 3)(torch.zeros(1, 1, 8, 8)), "factor must divide"),
        (
            lambda: SuperResolution(torch.zeros(1, 8, 8), 4)(torch.zeros(1, 1, 8, 8)),
            "the measurement has shape (1, 8, 8), but the samples are measured as (1, 2, 2)",
        ),
        (lambda: Inpainting(torch.zeros(1, 8, 8)), "inpainting needs its hole"),
        (lambda: build("blur:measurement=nowhere.png"), "there is no picture at nowhere.png"),
        (lambda: build("blur:measurement=pyproject.toml"), "pyproject.toml is not a readable picture"),
    ],
)
def test_mistakes_are_one_line(make, message, monkeypatch, root):
    monkeypatch.chdir(root)
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)
