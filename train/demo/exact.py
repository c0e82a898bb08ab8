"""Is the tilted clock's law the right one? Weighted particles against importance-weighted base samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import fmtt
from fmtt.baselines.best_of_n import best_of_n
from fmtt.evaluation import exactness
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards import clock, clock_judge
from fmtt.rewards.clock_reward import ClockReward, tilted_time_density
from fmtt.steering.result import TiltResult

TARGET, SHARPNESS, STEPS = "3:47", 3.0, 50
"""At this sharpness KL(tilted || prior) is about 1.3 nats."""
SMOOTHING = 0.002
"""Share of the uniform law mixed into a target histogram that is itself a finite sample's."""


def effective_size(result: TiltResult) -> float:
    """How many independent draws would have the histogram's variance, from the genealogy; at least 1."""

    def one_hot(x: Tensor) -> Tensor:
        reading = clock_judge.read(x)
        bins = (
            (reading.time * (exactness.CLOCK_BINS / clock.MINUTES)).long().clamp_max(exactness.CLOCK_BINS - 1)
        )
        return torch.nn.functional.one_hot(bins, exactness.CLOCK_BINS) * reading.readable[:, None]

    expected = result.expect(one_hot, pool=True)
    p, error = expected.value, expected.standard_error
    size = float((p * (1 - p)).sum() / error.square().sum())
    return size if 1 <= size < math.inf else 1.0  # not a number where one family is left


def check_exactness(
    flow_map: NeuralFlowMap,
    teacher: NeuralFlowMap,
    *,
    num_particles: int,
    num_populations: int,
    base_samples: int,
    sharpness: float = SHARPNESS,
    seed: int = 0,
    chunk_size: int = 256,
) -> dict[str, Any]:
    """Compare the times of weighted particles with the two laws that they should follow.

    Args:
        num_particles: per population.
        base_samples: unguided samples of the same discretised SDE, reweighted by e^r.

    Returns:
        ``kl_to_base_law`` and its ``noise_floor``, ``kl_to_closed_form``, ``ess`` (fraction), ``log_z`` of
        both estimates, and the histograms over 24 half-hour bins.
    """
    reward = ClockReward(TARGET, sharpness)
    generator = torch.Generator().manual_seed(seed)
    result = fmtt.tilt(
        flow_map,
        reward,
        num_particles=num_particles,
        num_steps=STEPS,
        weights="path",
        velocity=teacher.velocity,
        num_populations=num_populations,
        chunk_size=chunk_size,
        generator=generator,
    )
    base = best_of_n(
        flow_map,
        reward,
        num_samples=base_samples,
        steps=STEPS,
        sampler="velocity",
        noise=1.0,
        velocity=teacher.velocity,
        chunk_size=chunk_size,
        generator=generator,
    )
    base_log_weights = base.rewards.double()
    tilted = exactness.clock_histogram(result.samples, result.pooled_log_weights)
    law = exactness.clock_histogram(base.samples, base_log_weights)
    prior = exactness.clock_histogram(base.samples)
    closed = exactness.clock_density_histogram(*tilted_time_density(reward))
    size, base_size = effective_size(result), exactness.effective_size(base_log_weights)
    floor = exactness.noise_floor(
        law.probabilities, size, reference_size=base_size, smoothing=SMOOTHING, generator=generator
    )
    log_z = float(result.log_z.logsumexp(0)) - math.log(num_populations)
    return {
        "kl_to_base_law": float(exactness.kl(tilted.probabilities, law.probabilities, smoothing=SMOOTHING)),
        "kl_to_closed_form": float(exactness.kl(tilted.probabilities, closed)),
        "noise_floor": floor,
        "ess": float(result.ess.mean()),
        "sharpness": sharpness,
        "kl_tilted_to_prior": float(
            exactness.kl(law.probabilities, prior.probabilities, smoothing=SMOOTHING)
        ),
        "particles": num_particles * num_populations,
        "effective_size": size,
        "base_samples": base_samples,
        "base_effective_size": base_size,
        "readable": {"tilted": tilted.readable, "base": prior.readable},
        "log_z": log_z,
        "log_z_base": float(base_log_weights.logsumexp(0)) - math.log(base_samples),
        "base_law": result.base_law,
        "histograms": {
            "prior": prior.probabilities.tolist(),
            "importance-weighted base": law.probabilities.tolist(),
            "FMTT": tilted.probabilities.tolist(),
            "closed form": closed.tolist(),
        },
        "history": {
            "t": result.history.t.tolist(),
            "ess": result.history.ess.mean(1).tolist(),
            "log_z": result.history.log_z.mean(1).tolist(),
            "thermodynamic_length": result.history.thermodynamic_length.mean(1).tolist(),
            "resampled": (result.history.resampled.double().mean(1) > 0.5).int().tolist(),
        },
    }
