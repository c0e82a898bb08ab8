"""A flow map of a part of its samples: what holds by construction, and which law it has."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fmtt
from fmtt.flow.masked import Known, MaskedFlowMap, masked_velocity
from fmtt.flow.oracle import Gaussian

MASK = torch.tensor([True, False, True])
SAMPLE, NOISE = torch.tensor([9.0, 1.5, 9.0]).double(), torch.tensor([9.0, -0.5, 9.0]).double()


def known(oracle: Gaussian) -> Known:
    return Known(oracle.interpolant, SAMPLE, NOISE, MASK)


def correlated() -> Gaussian:
    return Gaussian([0.3, -0.2, 0.1], [[1.0, 0.8, 0.1], [0.8, 1.0, 0.0], [0.1, 0.0, 0.5]])


def test_what_is_known_runs_along_its_path_and_the_rest_is_free():
    oracle = correlated()
    own, part = known(oracle), torch.randn(5, 2).double()
    for t in (0.0, 0.3, 1.0):
        whole = own.whole(part, t)
        assert torch.equal(own.part(whole), part)
        assert torch.allclose(whole[:, 1], torch.tensor((1 - t) * -0.5 + t * 1.5).double())
    times = torch.rand(5).double()
    assert torch.equal(own.whole(part, times)[2:3], own.whole(part[2:3], times[2:3]))
    assert fmtt.sample(MaskedFlowMap(oracle, own), 4, steps=3, dtype=torch.float64).shape == (4, 2)


def test_it_is_a_flow_map_of_its_own_velocity():
    oracle = correlated()
    own = known(oracle)
    masked, x = MaskedFlowMap(oracle, own), torch.randn(5, 2).double()
    torch.testing.assert_close(masked(x, 0.4, 0.4), x)
    # A jump starts with what is known at its own start.
    torch.testing.assert_close(masked(x, 0.2, 0.9), own.part(oracle(own.whole(x, 0.2), 0.2, 0.9)))
    h = 1e-5
    slope = (masked(x, 0.4, 0.4 + h) - masked(x, 0.4, 0.4 - h)) / (2 * h)
    torch.testing.assert_close(slope, masked.velocity(x, 0.4), rtol=1e-6, atol=1e-6)
    assert torch.equal(masked_velocity(oracle.velocity, own)(x, 0.4), masked.velocity(x, 0.4))


def test_a_tilt_of_the_free_part_is_exact():
    """Of independent coordinates the law of the free ones is their own; e^{a x} shifts it by var a."""
    oracle = Gaussian([0.3, -0.2, 0.1], [1.0, 1.0, 0.5])
    own, a, N = known(oracle), torch.tensor([0.8, 2.0, -0.6]).double(), 2000

    def reward(x: Tensor, cond: object = None) -> Tensor:
        return own.whole(x, 1.0) @ a

    for weights in ("exact", "path"):
        result = fmtt.tilt(
            MaskedFlowMap(oracle, own),
            reward,
            num_particles=N,
            num_steps=30,
            weights=weights,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        for i, (mean, variance) in enumerate(((0.3 + 0.8, 1.0), (0.1 - 0.3, 0.5))):
            found = result.expect(lambda x, i=i: x[:, i])
            error = max(float(found.standard_error), math.sqrt(variance / N))
            assert abs(float(found.value) - mean) < 4 * error + 0.02 * math.sqrt(variance), (weights, i)
        log_z = 0.8 * 0.3 + 0.32 + 2.0 * 1.5 - 0.6 * 0.1 + 0.09
        assert abs(float(result.log_z) - log_z) < 0.05


def test_replacement_is_not_the_law_given_the_rest():
    """The companion: of correlated coordinates the free one misses its conditional mean."""
    oracle = correlated()
    masked, N = MaskedFlowMap(oracle, known(oracle)), 4000
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)).double()
    for k in range(100):
        x = x + masked.velocity(x, k / 100) / 100
    conditional = 0.3 + 0.8 * (1.5 + 0.2)
    assert abs(float(x[:, 0].mean()) - conditional) > 10 * float(x[:, 0].std()) / math.sqrt(N)


def test_of_correlated_coordinates_path_weights_tilt_a_law_and_exact_ones_none():
    """The score that exact weights take from the velocity is not that of these marginals. All is Gaussian."""
    oracle, n = correlated(), 8000
    far = Known(oracle.interpolant, torch.tensor([9.0, 4.0, 9.0]).double(), NOISE, MASK)
    masked = MaskedFlowMap(oracle, far)

    def tilted(weights: str, strength: float) -> fmtt.TiltResult:
        return fmtt.tilt(
            masked,
            lambda x, cond=None: strength * x[:, 0],
            num_particles=n,
            num_steps=50,
            weights=weights,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(int(strength)),
        )

    def log_z(x: Tensor) -> tuple[float, float]:
        """log E[e^x] of draws (n,) of a Gaussian, and its standard error."""
        variance = float(x.var())
        return float(x.mean()) + variance / 2, math.sqrt((variance + variance**2 / 2) / n)

    ode = torch.randn(n, 2, generator=torch.Generator().manual_seed(2)).double()
    for k in range(200):
        ode = ode + masked.velocity(ode, (k + 0.5) / 200) / 200
    laws = {"sde": log_z(tilted("path", 0.0).samples[:, 0]), "ode": log_z(ode[:, 0])}
    found = {weights: float(tilted(weights, 1.0).log_z) for weights in ("path", "exact")}
    off = {
        (weights, law): abs(value - truth) / math.hypot(error, math.sqrt(math.e / n))
        for weights, value in found.items()
        for law, (truth, error) in laws.items()
    }
    assert off["path", "sde"] < 4 < min(off["exact", "sde"], off["exact", "ode"]), (found, laws)
