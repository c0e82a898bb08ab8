"""How far a map is from the three identities of a flow map, over a grid of (s, t).

    Eulerian    d/ds X_{s,t}(x) + grad X_{s,t}(x) b_s(x) = 0
    Lagrangian  d/dt X_{s,t}(x) = b_t(X_{s,t}(x))
    semigroup   X_{m,t}(X_{s,m}(x)) = X_{s,t}(x), m halfway

States x lie on the reference ODE's trajectories. Each residual is a root mean square over samples and
coordinates, relative to the displacement: the first two, which are rates, to the mean velocity
(X - x) / (t - s); the third to X - x. So 0.1 means an error of a tenth of what the map does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.evaluation.lookahead import Track, Trajectory, silent
from fmtt.flow.calculus import eulerian_derivative, partial_t
from fmtt.tensor import take_cond
from fmtt.types import Cond, FlowMap, VelocityField

IDENTITIES = ("eulerian", "lagrangian", "semigroup")
FORWARD_AD = "forward AD"
"""In torch's words where an operator has no forward-mode derivative."""
LATE = 0.95
"""A column beside t = 1, where a learned velocity means little and the Lagrangian residual is not taken."""


class Residuals(NamedTuple):
    """Relative residuals; row i is s = ``s[i]``, column j is t = ``t[j]``; None where t <= s.

    The Lagrangian residual is None at t = 1 too.

    Attributes:
        dtype: in which they were computed.
    """

    s: tuple[float, ...]
    t: tuple[float, ...]
    eulerian: list[list[float | None]]
    lagrangian: list[list[float | None]]
    semigroup: list[list[float | None]]
    dtype: str

    def worst(self, name: str) -> float:
        """The largest residual of one identity."""
        return max(v for row in getattr(self, name) for v in row if v is not None)

    def mean(self, name: str) -> float:
        """The mean residual of one identity over the grid."""
        values = [v for row in getattr(self, name) for v in row if v is not None]
        return sum(values) / len(values)


def _mean_square(y: Tensor) -> Tensor:
    return y.double().square().mean()


def _at(
    flow_map: FlowMap, velocity: VelocityField, x: Tensor, s: float, t: float, cond: Cond | None
) -> Tensor:
    """Mean squares over x (B, *D): the three residuals, mean velocity, displacement; (5,)."""
    end, moving = eulerian_derivative(flow_map, x, s, t, cond, velocity(x, s, cond))
    _, rate = partial_t(flow_map, x, s, t, cond)
    middle = (s + t) / 2
    composed = flow_map(flow_map(x, s, middle, cond), middle, t, cond)
    terms = (moving, rate - velocity(end, t, cond), composed - end, (end - x) / (t - s), end - x)
    return torch.stack([_mean_square(y) for y in terms])


@torch.no_grad()
def residuals(
    flow_map: FlowMap,
    trajectory: Trajectory,
    *,
    velocity: VelocityField | None = None,
    chunk_size: int = 64,
    track: Track = silent,
) -> Residuals:
    """Measure the identities at every pair s < t of the trajectory's times, at t = LATE and at t = 1.

    Args:
        trajectory: from :func:`fmtt.evaluation.lookahead.reference`; its dtype is that of the derivatives.
        velocity: b; the map's own diagonal if omitted.

    Raises:
        UserError: when the map has no forward-mode derivative, or moves nothing.
    """
    field = flow_map.velocity if velocity is None else velocity
    late = [LATE] if trajectory.times[-1] < LATE else []
    s_grid, t_grid = trajectory.times, (*trajectory.times[1:], *late, 1.0)
    table: dict[str, list[list[float | None]]] = {name: [] for name in IDENTITIES}
    for i in track(range(len(s_grid)), "residuals"):
        x, s = trajectory.states[i], s_grid[i]
        line: dict[str, list[float | None]] = {name: [] for name in IDENTITIES}
        for t in t_grid:
            if t <= s:
                for values in line.values():
                    values.append(None)
                continue
            total = torch.zeros(5, dtype=torch.float64, device=x.device)
            for first in range(0, len(x), chunk_size):
                rows = slice(first, first + chunk_size)
                part = x[rows]
                try:
                    found = _at(flow_map, field, part, s, t, take_cond(trajectory.cond, rows))
                except NotImplementedError as error:
                    if FORWARD_AD not in str(error):
                        raise
                    raise UserError(
                        f"residuals need forward-mode derivatives of the map, which it lacks: {error}"
                    ) from error
                total += found * len(part)
            eulerian, lagrangian, semigroup, speed, moved = (total / len(x)).sqrt().tolist()
            if not speed > 0:
                raise UserError(
                    f"the map leaves every state where it is from s={s:g} to t={t:g}: is it trained?"
                )
            line["eulerian"].append(eulerian / speed)
            line["lagrangian"].append(lagrangian / speed if t < 1 else None)
            line["semigroup"].append(semigroup / moved)
        for name, values in line.items():
            table[name].append(values)
    return Residuals(s_grid, t_grid, **table, dtype=str(trajectory.states.dtype).removeprefix("torch."))
