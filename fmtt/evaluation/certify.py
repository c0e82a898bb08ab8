"""Certify a flow map: is the library exact on closed-form laws, and what does this map allow?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmtt.errors import UserError
from fmtt.evaluation import ascent, certify_matrix, lookahead
from fmtt.evaluation.ascent import RewardErrors
from fmtt.evaluation.certify_bias import PaperBias, paper_bias
from fmtt.evaluation.certify_matrix import CellResult
from fmtt.evaluation.certify_mismatch import Mismatch, mismatch
from fmtt.evaluation.certify_residuals import Residuals, residuals
from fmtt.evaluation.certify_verdict import Verdict, verdict
from fmtt.evaluation.lookahead import Track, Trajectory, silent
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, Reward, VelocityField

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8)
TOLERANCE = 1e-5
MATRICES = {"quick": certify_matrix.QUICK, "full": certify_matrix.FULL}


class LinearProbe:
    """The reward used where none is given: a random projection of the samples, scaled to unit variance."""

    differentiable = True

    def __init__(self, samples: Tensor, generator: torch.Generator | None = None) -> None:
        flat = samples.flatten(1)
        source = flat.device if generator is None else generator.device
        v = torch.randn(flat.shape[1], generator=generator, device=source, dtype=torch.float64).to(flat)
        projected = flat @ v
        scale = projected.std().clamp_min(torch.finfo(flat.dtype).tiny)
        self.direction, self.shift = v / scale, projected.mean() / scale

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        return x1.flatten(1) @ self.direction - self.shift


class Certificate(NamedTuple):
    """What was found; plain numbers and arrays throughout.

    Attributes:
        verdict: which weights to use, and why.
        residuals: of the three identities over (s, t).
        ascent: error and gradient cosine of every look-ahead under the reward; cosines are empty where the
            reward has no gradient.
        mismatch: between the velocity and the score computed from it.
        paper_bias: what the paper's weights would get wrong; None where the reward has no gradient.
        matrix: the exactness matrix on closed-form laws; empty if it was not asked for.
        reward: which reward was used, as text.
        num_samples: ODE trajectories.
    """

    verdict: Verdict
    residuals: Residuals
    ascent: RewardErrors
    mismatch: Mismatch
    paper_bias: PaperBias | None
    matrix: tuple[CellResult, ...]
    reward: str
    num_samples: int

    @property
    def matrix_holds(self) -> bool:
        """Whether every cell of the matrix passed."""
        return all(cell.passed for cell in self.matrix)


@torch.inference_mode(False)
@torch.no_grad()
def certify(
    flow_map: FlowMap,
    velocity: VelocityField | None = None,
    *,
    num_samples: int = 256,
    reward: Reward | None = None,
    data_shape: Sequence[int] | None = None,
    cond: Cond | None = None,
    times: Sequence[float] = TIMES,
    residual_samples: int = 64,
    gradient_samples: int = 16,
    num_particles: int = 32,
    num_populations: int = 16,
    num_steps: int = 50,
    sde_steps: int = 100,
    noise: float = 1.0,
    matrix: str | None = "quick",
    chunk_size: int = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    track: Track = silent,
) -> Certificate:
    """Measure what a flow map, its velocity and a reward allow, and say which weight rule to use.

    Args:
        flow_map: the map; needs forward-mode derivatives.
        velocity: b, the teacher's; the map's own diagonal if omitted.
        num_samples: ODE trajectories, and as many samples of the base SDE.
        reward: (B, *D) and cond to (B,); if omitted a random linear one of unit variance.
        data_shape: *D, where the map does not say its own.
        cond: one row of conditions.
        times: of the (s, t) grid and of the comparison of marginals, in [0, 1).
        residual_samples, gradient_samples: how many trajectories are spent on residuals and on gradients.
        num_particles, num_populations, num_steps: of the tilting runs that measure the paper's bias.
        sde_steps: steps of the base SDE that is compared with the ODE.
        noise: eps_t = noise * alpha_t of both.
        matrix: "quick", "full" or None.
        chunk_size: samples per network call.
        dtype: of the states; the map's own parameters' or float64 if it has none.

    Raises:
        UserError: when an argument is wrong or the map has no forward-mode derivative.
        UserError: when torchdiffeq is not installed.
    """
    if matrix is not None and matrix not in MATRICES:
        raise UserError(f"matrix must be one of {', '.join(MATRICES)} or None, got {matrix!r}")
    if num_samples < 4:
        raise UserError(f"num_samples must be at least 4, got {num_samples}")
    if num_populations < 2:
        raise UserError(f"num_populations must be at least 2, got {num_populations}")
    shape = data_shape if data_shape is not None else getattr(flow_map, "data_shape", None)
    if shape is None:
        raise UserError("data_shape is needed: this flow map does not say its own")
    like = next(flow_map.parameters(), None) if isinstance(flow_map, nn.Module) else None
    device = device if device is not None else "cpu" if like is None else like.device
    dtype = dtype if dtype is not None else torch.float64 if like is None else like.dtype
    if cond is not None and any(len(value) != 1 for value in cond.values()):
        raise UserError("cond must have one row: a certificate is for one condition")

    field = flow_map.velocity if velocity is None else velocity
    rows = take_cond(cond, torch.zeros(num_samples, dtype=torch.long, device=device))
    trajectory = lookahead.reference(
        field,
        num_samples,
        shape,
        times=times,
        cond=rows,
        tol=TOLERANCE,
        generator=generator,
        device=device,
        dtype=dtype,
        chunk_size=chunk_size,
        track=track,
    )
    named = "a random linear probe of unit variance" if reward is None else _name(reward)
    chosen: Reward = LinearProbe(trajectory.endpoint, generator) if reward is None else reward
    smooth = _has_gradient(chosen, trajectory)

    found = residuals(
        flow_map,
        trajectory.first(residual_samples),
        velocity=velocity,
        chunk_size=chunk_size,
        track=track,
    )
    slopes = ascent.reward_errors(
        flow_map,
        trajectory,
        chosen,
        velocity=velocity,
        gradient_samples=min(gradient_samples, num_samples) if smooth else 0,
        chunk_size=chunk_size,
        track=track,
    )
    drift = mismatch(
        field,
        flow_map.interpolant,
        trajectory,
        steps=sde_steps,
        noise=noise,
        generator=generator,
        chunk_size=chunk_size,
        track=track,
    )
    bias = None
    if smooth:
        for _ in track(range(1), "the paper's weights"):
            bias = paper_bias(
                flow_map,
                chosen,
                num_particles=num_particles,
                num_populations=num_populations,
                num_steps=num_steps,
                velocity=velocity,
                data_shape=tuple(shape),
                cond=cond,
                noise=noise,
                device=device,
                dtype=dtype,
                chunk_size=chunk_size,
                generator=generator,
            )
    cells = certify_matrix.run(MATRICES[matrix], track=track) if matrix else []
    return Certificate(
        verdict(found, drift, bias), found, slopes, drift, bias, tuple(cells), named, num_samples
    )


def _name(reward: Reward) -> str:
    text = repr(reward)
    return type(reward).__name__ if text.startswith("<") else text


def _has_gradient(reward: Reward, trajectory: Trajectory) -> bool:
    """Whether the reward says so by ``differentiable``, or lets a gradient through one sample."""
    declared = getattr(reward, "differentiable", None)
    if declared is not None:
        return bool(declared)
    with torch.enable_grad():
        probe = trajectory.endpoint[:1].detach().clone().requires_grad_()
        return reward(probe, take_cond(trajectory.cond, slice(0, 1))).requires_grad
