"""Image grids: look-ahead grids, sample grids beside the teacher's, particles before and after a tilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fmtt.evaluation.lookahead import MAP_STEPS, Trajectory, lookaheads
from fmtt.evaluation.style import canvas, label, panels
from fmtt.png import DEFAULT_RANGE, to_rgb
from fmtt.tensor import take_cond
from fmtt.types import FlowMap, VelocityField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.95
"""Side of one picture in inches."""
ACROSS = 16
"""Most pictures beside each other in blocks of them."""


def _show(axis: Axes, rgb: Tensor, caption: str = "") -> None:
    axis.imshow(rgb.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if caption:
        axis.set_xlabel(caption, fontsize=8.5, labelpad=2)


@torch.no_grad()
def lookahead_grid(
    flow_map: FlowMap,
    trajectory: Trajectory,
    *,
    sample: int = 0,
    velocity: VelocityField | None = None,
    map_steps: Sequence[int] = MAP_STEPS,
    values: tuple[float, float] = DEFAULT_RANGE,
) -> Figure:
    """What each look-ahead sees of one trajectory, after Figure 2 of FMTT (arXiv 2511.22688).

    Rows: the noisy x_t, the denoiser, the 1-, 2- and 4-step map, the true endpoint; columns over t.

    Args:
        trajectory: of images (1 or 3, H, W).
        sample: which of the trajectory's samples.
        values: what stands for black and white.
    """
    rows: dict[str, list[Tensor]] = {"noisy $x_t$": list(trajectory.states[:, sample])}
    cond = take_cond(trajectory.cond, slice(sample, sample + 1))
    for name, function in lookaheads(flow_map, velocity=velocity, map_steps=map_steps).items():
        seen = [
            function(x[sample : sample + 1], t, cond)[0]
            for x, t in zip(trajectory.states, trajectory.times, strict=True)
        ]
        rows[label(name)] = seen
    rows["true endpoint"] = [trajectory.endpoint[sample]] * len(trajectory.times)
    K = len(trajectory.times)
    with canvas(1.5 + CELL * K, 0.35 + CELL * len(rows)) as figure:
        axes = iter(panels(figure, len(rows), K))
        for r, (name, images) in enumerate(rows.items()):
            for k, rgb in enumerate(to_rgb(torch.stack(images), values)):
                axis = next(axes)
                _show(axis, rgb)
                if r == 0:
                    axis.set_title(f"t = {trajectory.times[k]:g}", fontsize=9.5)
                if k == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontsize=9.5)
    return figure


def sample_rows(rows: Mapping[str, Tensor], *, values: tuple[float, float] = DEFAULT_RANGE) -> Figure:
    """One row of samples per name (``1 step``, ``4 steps``, ``teacher``), columns sharing their noise.

    Args:
        rows: images (n, 1 or 3, H, W) by name, the same n.
    """
    n = max(len(images) for images in rows.values())
    with canvas(1.5 + CELL * n, 0.2 + CELL * len(rows)) as figure:
        axes = panels(figure, len(rows), n)
        for r, (name, images) in enumerate(rows.items()):
            for axis in axes[r * n : (r + 1) * n]:
                axis.set_axis_off()
            for k, rgb in enumerate(to_rgb(images, values)):
                axis = axes[r * n + k]
                axis.set_axis_on()
                _show(axis, rgb)
                if k == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontsize=9.5)
    return figure


def particle_grids(
    groups: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]] | None = None,
    *,
    columns: int = 8,
    values: tuple[float, float] = DEFAULT_RANGE,
) -> Figure:
    """Blocks of captioned images, such as particles before and after a tilt; side by side while they fit.

    Args:
        groups: images (n, 1 or 3, H, W) by title, or by method.
        captions: one text per image, by the same titles; read times for clocks.
    """
    rows = max(-(-len(images) // columns) for images in groups.values())
    abreast = min(len(groups), max(1, ACROSS // columns))
    deep = -(-len(groups) // abreast)
    height = CELL * (1.22 if captions else 1.0)
    with canvas(0.4 + CELL * columns * abreast, (0.45 + height * rows) * deep) as figure:
        blocks = [block for line in figure.subfigures(deep, abreast, squeeze=False) for block in line]
        for block, (title, images) in zip(blocks, groups.items(), strict=False):  # the last row may have room
            block.suptitle(label(title), fontsize=11)
            axes = panels(block, rows, columns)
            texts = captions.get(title, ()) if captions else ()
            for axis in axes[len(images) :]:
                axis.set_axis_off()
            for k, rgb in enumerate(to_rgb(images, values)):
                _show(axes[k], rgb, texts[k] if k < len(texts) else "")
    return figure
