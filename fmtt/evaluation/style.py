"""One look for every figure: fonts, a colour and a name per method, and drawing without pyplot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fmtt.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "none": "#8c8c8c",
    "base": "#8c8c8c",
    "denoiser": "#c8553d",
    "map_1": "#9ecae1",
    "map_2": "#4a90c4",
    "map_4": "#1c4f82",
    "best_of_n": "#b8860b",
    "best_of_n_few_step": "#6a994e",
    "fmtt_denoiser": "#c8553d",
    "fmtt_flow_map": "#1c4f82",
    "fmtt_search": "#1c4f82",
    "fmtt_tilt": "#4a90c4",
    "fmtt_search_denoiser": "#c8553d",
    "fmtt_tilt_denoiser": "#e39a87",
    "multi_round": "#2f6b3a",
    "reno": "#7b5ea7",
    "denoiser_guidance": "#d1a039",
    "fk_difference": "#2a9d8f",
    "fk_max": "#76c7bd",
    "fk_sum": "#14574f",
    "das": "#555555",
    "fmrg": "#a23b72",
}
LABELS = {
    "none": "none ($x_t$ itself)",
    "base": "base",
    "denoiser": "denoiser",
    "map_1": "flow map, 1 step",
    "map_2": "flow map, 2 steps",
    "map_4": "flow map, 4 steps",
    "best_of_n": "best of N",
    "best_of_n_few_step": "best of N, few-step map",
    "fmtt_denoiser": "FMTT, denoiser look-ahead",
    "fmtt_flow_map": "FMTT, flow-map look-ahead",
    "fmtt_search": "FMTT search, map",
    "fmtt_tilt": "FMTT tilt, map",
    "fmtt_search_denoiser": "FMTT search, denoiser",
    "fmtt_tilt_denoiser": "FMTT tilt, denoiser",
    "multi_round": "multi-round best of N",
    "reno": "ReNO",
    "denoiser_guidance": "DPS-type guidance",
    "fk_difference": "FK steering, difference",
    "fk_max": "FK steering, max",
    "fk_sum": "FK steering, sum",
    "das": "DAS-type tempered SMC",
    "fmrg": "FMRG-type guidance",
}
OTHER_COLOURS = ("#7b5ea7", "#2a9d8f", "#d1a039", "#a23b72", "#555555")

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def colour(name: str, position: int = 0) -> str:
    """The fixed colour of a method, or one by position for a name that has none."""
    return COLOURS.get(name, OTHER_COLOURS[position % len(OTHER_COLOURS)])


def label(name: str) -> str:
    """The name of a method as a legend shows it."""
    return LABELS.get(name, name.replace("_", " "))


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of the given size in inches, drawn in the house style and known to no pyplot state.

    Raises:
        UserError: when matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'fmtt[evaluate]'") from error
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def panels(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """The axes of a grid of panels, row by row."""
    axes = figure.subplots(rows, columns, squeeze=False)
    return [axis for row in axes for axis in row]


def png(figure: Figure, *, dpi: int = 130) -> bytes:
    """Render a figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def curve(
    axis: Axes,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    position: int = 0,
    standard_error: Sequence[float] | None = None,
) -> None:
    """One method's line with markers, with bars of one standard error where given."""
    name, tint = label(name), colour(name, position)
    if standard_error is None:
        axis.plot(x, y, color=tint, label=name, marker="o")
    else:
        axis.errorbar(x, y, standard_error, color=tint, label=name, marker="o", capsize=2.5, elinewidth=1)
