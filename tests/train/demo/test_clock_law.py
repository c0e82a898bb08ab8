"""Tilted clocks follow the base law times e^r, however sharp the reward and however poor the look-ahead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.baselines.best_of_n import best_of_n
from fmtt.evaluation import exactness, lookahead
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.rewards.clock_reward import ClockReward
from train.demo.exact import SMOOTHING, effective_size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

TARGET, STEPS = "3:47", 25
SHARPNESSES = (1.8, 3.0, 4.0)
"""KL(tilted || prior) runs from 0.5 to 2 nats."""
POPULATIONS, PARTICLES, BASE = 32, 128, 16_384
UNTRAINED = 0.7
"""Share of the way back from the shipped map's weights to those it was trained from, the teacher's."""
MARGIN = 0.03


def under_trained() -> NeuralFlowMap:
    """The shipped map with its weights drawn most of the way back to where its training began.

    There its look-ahead is the denoiser; on the way its error is about twice the shipped map's.
    """
    blended = fmtt.load("clock-map")
    assert isinstance(blended.network, AnchoredDiT)
    own, start = blended.network.own, blended.network.anchor.state_dict()
    own.load_state_dict({k: torch.lerp(v, start[k], UNTRAINED) for k, v in own.state_dict().items()})
    return blended


@pytest.fixture(scope="module")
def teacher() -> NeuralFlowMap:
    return fmtt.load("clock-teacher")


@pytest.fixture(scope="module")
def maps() -> dict[str, NeuralFlowMap]:
    return {"shipped": fmtt.load("clock-map"), "under-trained": under_trained()}


@pytest.fixture(scope="module")
def base(teacher: NeuralFlowMap) -> Tensor:
    """Untilted samples of the base SDE at the tilting runs' own steps."""
    generator = torch.Generator().manual_seed(1)
    settings = {"steps": STEPS, "sampler": "velocity", "noise": 1.0, "velocity": teacher.velocity}
    reward = ClockReward(TARGET, 1.0)
    drawn = best_of_n(teacher, reward, num_samples=BASE, chunk_size=256, generator=generator, **settings)
    return drawn.samples


def test_the_under_trained_map_looks_ahead_worse(
    teacher: NeuralFlowMap, maps: dict[str, NeuralFlowMap]
) -> None:
    generator, times = torch.Generator().manual_seed(0), (0.0, 0.2, 0.4)
    track = lookahead.reference(
        teacher.velocity, 32, teacher.data_shape, times=times, tol=1e-4, generator=generator
    )
    with torch.no_grad():
        errors = {
            name: [
                float((m(x, t, 1.0) - track.endpoint).square().mean().sqrt())
                for x, t in zip(track.states, times, strict=True)
            ]
            for name, m in maps.items()
        }
    print(errors)
    assert sum(errors["under-trained"]) > 1.6 * sum(errors["shipped"])


@pytest.mark.parametrize("sharpness", SHARPNESSES)
@pytest.mark.parametrize("name", ("shipped", "under-trained"))
def test_times_follow_the_base_law_times_the_exponential_reward(
    teacher: NeuralFlowMap, maps: dict[str, NeuralFlowMap], base: Tensor, name: str, sharpness: float
) -> None:
    reward, generator = ClockReward(TARGET, sharpness), torch.Generator().manual_seed(2)
    result = fmtt.tilt(
        maps[name],
        reward,
        num_particles=PARTICLES,
        num_populations=POPULATIONS,
        num_steps=STEPS,
        weights="path",
        velocity=teacher.velocity,
        chunk_size=256,
        generator=generator,
    )
    log_weights = reward(base).double()
    tilted = exactness.clock_histogram(result.samples, result.pooled_log_weights)
    law, prior = exactness.clock_histogram(base, log_weights), exactness.clock_histogram(base)
    strength = float(exactness.kl(law.probabilities, prior.probabilities, smoothing=SMOOTHING))
    floor = exactness.noise_floor(
        law.probabilities,
        effective_size(result),
        reference_size=exactness.effective_size(log_weights),
        smoothing=SMOOTHING,
        generator=generator,
    )
    found = float(exactness.kl(tilted.probabilities, law.probabilities, smoothing=SMOOTHING))
    untilted = float(exactness.kl(prior.probabilities, law.probabilities, smoothing=SMOOTHING))
    print(
        f"\n{name}, sharpness {sharpness:g}: KL(tilted || prior) {strength:.2f} nats; KL to the base law "
        f"{found:.4f}, noise floor {floor:.4f}; ESS {float(result.ess.mean()):.2f}, independent draws "
        f"{effective_size(result):.0f} of {POPULATIONS * PARTICLES}; untilted {untilted:.2f}"
    )
    assert 0.5 <= strength <= 2
    assert found <= floor + MARGIN
    assert untilted > floor + MARGIN  # what a tilt that does nothing would show
