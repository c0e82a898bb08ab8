"""The history of a tilting run as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmtt.errors import UserError
from fmtt.files import atomic_write
from fmtt.steering.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "ess": ("fraction", "effective sample size (dots: resampled)"),
    "log_z": ("nats", "log Z so far"),
    "strength": ("", "strength $\\lambda$ of the reward"),
    "thermodynamic_length": ("nats", "thermodynamic length so far"),
    "mean_reward": ("reward units", "look-ahead reward: mean, best dashed"),
    "guidance_ratio": ("", "guidance over unguided move (rms)"),
}


def plot_history(history: History, path: str | Path | None = None) -> Figure:
    """Six panels over time, one line per population.

    Args:
        path: where the figure is written; its ending chooses the format.

    Raises:
        UserError: when matplotlib is not installed or knows no such format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plot needs matplotlib: pip install 'fmtt[evaluate]'") from error
    figure = Figure(figsize=(12.0, 6.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    t = history.t.cpu()
    for axis, (name, (unit, title)) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        lines = axis.plot(t, getattr(history, name).cpu(), linewidth=1.4)
        if name == "ess":
            for line, ess, flags in zip(lines, history.ess.T.cpu(), history.resampled.T.cpu(), strict=True):
                axis.plot(t[flags], ess[flags], "o", color=line.get_color(), markersize=4)
            axis.set_ylim(0, 1.03)
        if name == "mean_reward":
            for line, best in zip(lines, history.best_reward.T.cpu(), strict=True):
                axis.plot(t, best, "--", color=line.get_color(), linewidth=1.0)
        axis.set(xlabel="time t (0 = noise, 1 = data)", ylabel=unit, title=title)
        axis.grid(color="#e4e4e4", linewidth=0.7)
    if path is not None:
        suffix = Path(path).suffix[1:].lower()
        if suffix not in canvas.get_supported_filetypes():
            raise UserError(f"cannot draw {path}: end its name in .png, .pdf or .svg")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=130)
    return figure
