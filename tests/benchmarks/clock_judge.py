"""What a flow map of the clock is measured against: the teacher's ODE, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import fmtt
from fmtt.evaluation.ascent import cosine, gradient, ode_gradient
from fmtt.evaluation.distances import mmd, self_similarity
from fmtt.evaluation.lookahead import LookaheadFn, Trajectory, chunked, lookaheads, reference
from fmtt.files import atomic_write
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards import build
from fmtt.types import Cond

TIMES = (0.0, 0.2, 0.4)
MAP_STEPS = (1, 4)
REWARD = "clock:time=3:47,sharpness=10"
GRADIENT_STEPS, CHUNK = 32, 64


class Paired(NamedTuple):
    """A number and its standard error over samples that both sides of a comparison share."""

    value: float
    standard_error: float


class Judge:
    """Trajectories of the teacher's ODE, a second set of its samples, and reward gradients through it.

    Args:
        count: trajectories. gradients: how many of them have a reward gradient.
        kept: a file that holds all this where it has been made before, and is written otherwise.
    """

    def __init__(self, teacher: NeuralFlowMap, count: int, gradients: int, kept: Path) -> None:
        self.teacher, self.reward = teacher, build(REWARD)
        tensors = self._read(kept, count, gradients)
        if tensors is None:
            tensors = self._solve(count, gradients)
            with atomic_write(kept) as temporary:
                save_file(tensors, temporary)
        self.trajectory = Trajectory(TIMES, tensors["states"], tensors["endpoint"])
        self.exact = tensors["gradients"]  # (times, gradients, *D)
        self.truth = self.trajectory.endpoint.flatten(1)
        self.bandwidth = float(torch.pdist(self.truth).median())
        self.own = self_similarity(self.truth, self.bandwidth)
        self.floor = self.mmd(tensors["other"])
        denoiser = lookaheads(teacher, map_steps=())["denoiser"]
        self.denoiser = self._squared(denoiser)
        self.denoiser_cosine = self._cosines(denoiser)

    def _read(self, kept: Path, count: int, gradients: int) -> dict[str, Tensor] | None:
        try:
            tensors = load_file(kept)
        except (OSError, SafetensorError):
            return None
        same = len(tensors["endpoint"]) == count and tensors["gradients"].shape[1] == gradients
        return tensors if same else None

    def _solve(self, count: int, gradients: int) -> dict[str, Tensor]:
        shape, field = self.teacher.data_shape, self.teacher.velocity
        one, other = (
            reference(
                field, count, shape, times=TIMES, tol=1e-4, generator=torch.Generator().manual_seed(seed)
            )
            for seed in (1, 2)
        )

        def slope(x: Tensor, t: float, cond: Cond | None) -> Tensor:
            return ode_gradient(self.reward, field, x, t, cond, steps=GRADIENT_STEPS)

        few = one.first(gradients)
        exact = [chunked(slope, few.states[k], t, None, CHUNK) for k, t in enumerate(TIMES)]
        states = one.states.contiguous()
        ends = {"endpoint": one.endpoint.contiguous(), "other": other.endpoint.contiguous()}
        return {"states": states, **ends, "gradients": torch.stack(exact)}

    def mmd(self, x: Tensor) -> float:
        """Squared MMD of samples (N, *D) to the teacher's."""
        return float(mmd(x.flatten(1), self.truth, self.bandwidth, own=self.own))

    @torch.no_grad()
    def _squared(self, function: LookaheadFn) -> list[list[float]]:
        """Mean square error of every sample, by time."""
        found = []
        for k, t in enumerate(TIMES):
            error = chunked(function, self.trajectory.states[k], t, None, CHUNK) - self.trajectory.endpoint
            found.append(error.double().flatten(1).square().mean(1).tolist())
        return found

    def _cosines(self, function: LookaheadFn) -> list[list[float]]:
        """Cosine of every sample's reward gradient with the one through the ODE, by time."""

        def slope(x: Tensor, t: float, cond: Cond | None) -> Tensor:
            return gradient(self.reward, function, x, t, cond)

        few = self.trajectory.first(self.exact.shape[1])
        pairs = enumerate(TIMES)
        return [
            cosine(chunked(slope, few.states[k], t, None, CHUNK), self.exact[k]).double().tolist()
            for k, t in pairs
        ]

    def measure(self, student: NeuralFlowMap) -> dict[str, Any]:
        """Per look-ahead and time the squared error and gradient cosine of every sample, the ratio of their
        RMSE to the denoiser's and their mean cosine; MMD² of samples by number of steps."""
        named = lookaheads(student, velocity=self.teacher.velocity, map_steps=MAP_STEPS)
        del named["denoiser"]
        squared = {name: self._squared(function) for name, function in named.items()}
        cosines = {name: self._cosines(function) for name, function in named.items()}
        distance = {}
        for steps in MAP_STEPS:
            generator = torch.Generator().manual_seed(3)
            distance[str(steps)] = self.mmd(
                fmtt.sample(student, len(self.truth), steps=steps, generator=generator)
            )
        ratio = {
            n: [rmse_ratio(a, b).value for a, b in zip(v, self.denoiser, strict=True)]
            for n, v in squared.items()
        }
        mean = {n: [sum(v) / len(v) for v in values] for n, values in cosines.items()}
        return {
            "ratio": ratio,
            "cosine": mean,
            "mmd": distance,
            "samples": {"squared": squared, "cosine": cosines},
        }


def rmse_ratio(a: list[float], b: list[float]) -> Paired:
    """RMSE of ``a`` over that of ``b``, squared errors of the same samples; its error by the delta method."""
    one, other = torch.tensor(a).double(), torch.tensor(b).double()
    value = (one.mean() / other.mean()).sqrt()
    influence = (one / one.mean() - other / other.mean()) / 2
    return Paired(float(value), float(value * influence.std() / len(a) ** 0.5))


def difference(a: list[float], b: list[float]) -> Paired:
    """Mean of ``a`` less that of ``b``, values of the same samples."""
    change = torch.tensor(a).double() - torch.tensor(b).double()
    return Paired(float(change.mean()), float(change.std() / len(a) ** 0.5))
