"""Does the velocity agree with the score computed from it?

For the exact velocity of some law, the SDE dx = (b + eps s) dt + sqrt(2 eps) dW has the marginals of the ODE
dx = b dt whatever eps is. For a learned b the score computed from b is not quite the score of b's own ODE
marginals, and the two drift apart. Measured at several times, and with two numbers of steps, since the
discretisation of the SDE drifts too: what the finer one leaves is the mismatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation.distances import Drift, permutation_drift
from fmtt.evaluation.lookahead import Track, Trajectory, silent
from fmtt.flow.interpolant import Interpolant
from fmtt.steering.schedule import noises
from fmtt.tensor import take_cond
from fmtt.types import Cond, VelocityField


class Mismatch(NamedTuple):
    """Drift of the base SDE's marginals from the ODE's.

    Attributes:
        t: (M,) times.
        steps: of the two SDE runs, the coarse one first.
        drift: per number of steps, M drifts (sliced Wasserstein distance, floor, floor's deviation).
        spread: (M,) root mean square deviation of the ODE's samples from their mean, to compare with.
        mean_shift: (M,) per number of steps: distance of the means, in units of its standard error by chance.
    """

    t: tuple[float, ...]
    steps: tuple[int, int]
    drift: list[list[Drift]]
    spread: list[float]
    mean_shift: list[list[float]]

    def relative(self, run: int = -1) -> list[float]:
        """The drift above its floor as a share of the spread, per time; of the finer run by default."""
        return [d.excess / max(s, 1e-300) for d, s in zip(self.drift[run], self.spread, strict=True)]

    def resolution(self) -> float:
        """The smallest drift, as a share of the spread, that would have shown (four deviations)."""
        seen = [((d.floor + 4 * d.floor_deviation) ** 2 - d.floor**2) ** 0.5 for d in self.drift[-1]]
        return max(v / max(s, 1e-300) for v, s in zip(seen, self.spread, strict=True))

    def significance(self, run: int = -1) -> list[float]:
        """Standard deviations of the drift above its floor, per time."""
        return [d.significance for d in self.drift[run]]


@torch.no_grad()
def base_sde(
    velocity: VelocityField,
    interpolant: Interpolant,
    x: Tensor,
    steps: int,
    keep: Sequence[float],
    *,
    cond: Cond | None = None,
    noise: float = 1.0,
    generator: torch.Generator | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """The sampler's base process, untilted: states (M, B, *D) at the times ``keep``, rounded to the
    grid but never to its start.

    Args:
        x: (B, *D) at t = 0.
        steps: Euler-Maruyama steps of a uniform grid from 0 to 1.
        noise: eps_t = noise * alpha_t, taken at a step's end.
    """
    h, source = 1 / steps, x.device if generator is None else generator.device
    eps = noises(noise, tuple(k / steps for k in range(steps + 1)), interpolant)
    wanted, found = [max(1, round(t * steps)) for t in keep], []
    for k in range(steps):
        t, parts = k * h, []
        alpha = float(interpolant.alpha(torch.tensor(t, dtype=torch.float64)))
        for first in range(0, len(x), chunk_size):
            rows = slice(first, first + chunk_size)
            part = x[rows]
            b = velocity(part, t, take_cond(cond, rows))
            parts.append(part + h * (b - (eps[k] / alpha) * interpolant.noise(b, part, t)))
        xi = torch.randn(x.shape, generator=generator, device=source, dtype=x.dtype).to(x.device)
        x = torch.cat(parts) + (2 * eps[k] * h) ** 0.5 * xi
        found += [x] * wanted.count(k + 1)
    return torch.stack(found)


def mismatch(
    velocity: VelocityField,
    interpolant: Interpolant,
    trajectory: Trajectory,
    *,
    steps: int = 100,
    noise: float = 1.0,
    generator: torch.Generator | None = None,
    chunk_size: int = 256,
    track: Track = silent,
) -> Mismatch:
    """Compare base-SDE samples, at ``steps`` and half as many steps, with as many ODE samples.

    Args:
        velocity: b.
        trajectory: the ODE's states of b; compared at its times, but for 0, and at 1.
    """
    inside = [k for k, t in enumerate(trajectory.times) if t > 0]
    times = (*(trajectory.times[k] for k in inside), 1.0)
    ode = [*(trajectory.states[k] for k in inside), trajectory.endpoint]
    counts = (max(1, steps // 2), steps)
    drift: list[list[Drift]] = []
    shift: list[list[float]] = []
    for run in track(range(2), "base SDE against ODE"):
        x0 = torch.randn(
            ode[0].shape,
            generator=generator,
            device=ode[0].device if generator is None else generator.device,
            dtype=ode[0].dtype,
        ).to(ode[0].device)
        states = base_sde(
            velocity,
            interpolant,
            x0,
            counts[run],
            times,
            cond=trajectory.cond,
            noise=noise,
            generator=generator,
            chunk_size=chunk_size,
        )
        drift.append([permutation_drift(a, b, generator=generator) for a, b in zip(states, ode, strict=True)])
        shift.append([_mean_shift(a, b) for a, b in zip(states, ode, strict=True)])
    return Mismatch(times, counts, drift, [_spread(y) for y in ode], shift)


def _spread(x: Tensor) -> float:
    return float((x - x.mean(0)).double().flatten(1).square().sum(1).mean().sqrt())


def _mean_shift(a: Tensor, b: Tensor) -> float:
    """Distance of the means over what chance gives it on average in its root mean square."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    expected = (a.var(0).sum() / len(a) + b.var(0).sum() / len(b)).sqrt()
    return float((a.mean(0) - b.mean(0)).norm() / expected)
