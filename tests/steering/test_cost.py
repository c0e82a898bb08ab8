"""The meter agrees with what the network was asked to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.flow.oracle import Gaussian
from fmtt.steering.cost import Cost


def reward(x: Tensor, cond: Any = None) -> Tensor:
    return 1.5 * x[:, 0] - x[:, 0].square() / 2


def tilt(flow: Any, **options: Any) -> fmtt.TiltResult:
    settings = {"num_particles": 64, "num_steps": 12, "dtype": torch.float64, **options}
    return fmtt.tilt(flow, reward, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize(
    ("lookahead", "steps", "gradient", "passes"),
    [
        ("none", 1, "auto", 1),
        ("denoiser", 1, "auto", 3),
        ("euler", 3, "auto", 9),
        ("flow_map", 1, "auto", 4),
        ("flow_map", 2, "auto", 7),
        ("denoiser", 1, "none", 1),
        ("flow_map", 2, "none", 3),
    ],
)
def test_cost_is_what_the_network_did(
    product_mixture: Any, lookahead: str, steps: int, gradient: str, passes: int
) -> None:
    base, N, K = product_mixture(1), 10, 9
    counts = {"forward": 0, "differentiated": 0}

    class Counted(type(base)):
        def velocity(self, x: Tensor, *args: Any) -> Tensor:
            return self.count(x, super().velocity(x, *args))

        def __call__(self, x: Tensor, *args: Any) -> Tensor:
            return self.count(x, super().__call__(x, *args))

        def count(self, x: Tensor, out: Tensor) -> Tensor:
            counts["forward"] += len(x)
            counts["differentiated"] += len(x) * out.requires_grad
            return out

    result = tilt(
        Counted(1),
        num_particles=N,
        num_steps=K,
        lookahead=lookahead,
        lookahead_steps=steps,
        weights="path",
        gradient=gradient,
        chunk_size=4,
    )
    assert result.cost.forwards == counts["forward"]
    assert result.cost.backwards == counts["differentiated"]
    # A step at which lambda = 0 looks no further; nor does the last one need a gradient.
    steered = K - 2
    looks = {"none": 0, "denoiser": 0, "euler": steps - 1, "flow_map": steps}[lookahead]
    differentiated = (passes - 1 - looks) // 2 if gradient == "auto" else 0
    assert result.cost.passes == N * (K + looks * (K - 1) + 2 * differentiated * steered)


@pytest.mark.parametrize("probes", [0, 1, 2])
def test_every_forward_that_is_repeated_is_counted(product_mixture: Any, probes: int) -> None:
    """Once for the gradient, and once more for each probe of its divergence."""
    base, seen = product_mixture(1), 0

    class Counted(type(base)):
        def velocity(self, x: Tensor, *args: Any) -> Tensor:
            nonlocal seen
            seen += len(x)
            return super().velocity(x, *args)

        def __call__(self, x: Tensor, *args: Any) -> Tensor:
            nonlocal seen
            seen += len(x)
            return super().__call__(x, *args)

    drift: dict[str, Any] = {"chi": 0.3, "num_probes": probes} if probes else {}
    options = {"num_particles": 4, "num_steps": 4, "lookahead_steps": 2, "weights": "exact"}
    assert tilt(Counted(1), checkpoint=True, **options, **drift).cost.forwards == seen


def test_exact_weights_cost_one_reverse_pass_a_step() -> None:
    """One reward call more tells whether the reward has a gradient."""
    flow, N, K = Gaussian([0.2], 0.5), 10, 8
    cost = tilt(flow, num_particles=N, num_steps=K).cost
    assert (cost.forwards, cost.backwards, cost.jvps) == (N * 2 * K, N * (K - 1), 0)
    assert cost.reward_calls == N * (K + 1) + 1 and cost.seconds > 0 and cost.peak_bytes > 0


def test_gradients_kept_between_steps_cost_nothing(product_mixture: Any) -> None:
    options = {"weights": "path", "num_steps": 12, "num_particles": 10}
    every = tilt(product_mixture(1), **options).cost.passes
    fourth = tilt(product_mixture(1), gradient_every=4, **options).cost.passes
    assert fourth == 10 * (12 + 3 * 3) and every == 10 * (12 + 11 + 2 * 10)


def test_cost_adds_up() -> None:
    cost = Cost(forwards=10, backwards=3, jvps=2, populations=4)
    assert cost.passes == 20 and cost.passes_per_population == 5
    assert cost.as_dict()["passes"] == 20
