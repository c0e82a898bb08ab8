"""``python -m train.demo.measure EXPORT``: measure a clock model and write the figures into its export.

A velocity model: held-out loss, share of readable samples, distance of their times from the prior. A flow
map: look-ahead error against the shipped teacher.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fmtt
from data.procedural import procedural
from fmtt.baselines.best_of_n import best_of_n
from fmtt.errors import UserError
from fmtt.evaluation import exactness
from fmtt.evaluation.lookahead import lookahead_errors, reference, teacher_nfe_matched
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.checkpoint import CARD, WEIGHTS, save
from fmtt.rewards import clock
from train.losses.base import Times, mean_square, sample_path

HELD_OUT_SEED = 2**31
"""Training draws its clocks with other seeds."""
HELD_OUT, SAMPLES, TRAJECTORIES, CHUNK = 2048, 5000, 256, 256
STEPS = 50
HEADING = "## Measured on the finished model"


def prior_histogram() -> torch.Tensor:
    """The prior of clock times over 24 half-hour bins."""
    grid = torch.arange(0, clock.MINUTES, 0.5)
    density = clock.time_density(grid)
    return exactness.clock_density_histogram(grid, density / density.sum())


@torch.no_grad()
def held_out_loss(model: NeuralFlowMap, generator: torch.Generator) -> float:
    """Flow-matching loss (mean square over pixels, t uniform in [0, 0.95]) on clocks never trained on."""
    x_1 = procedural("clock").batch(torch.arange(HELD_OUT), HELD_OUT_SEED).x
    x_0 = torch.randn(x_1.shape, generator=generator)
    t = 0.95 * torch.rand(HELD_OUT, generator=generator)
    losses = []
    for rows in torch.arange(HELD_OUT).split(CHUNK):
        times = Times(t[rows], t[rows], t[rows])
        path = sample_path(model.interpolant, x_0[rows], x_1[rows], times.s)
        losses.append(mean_square(model.velocity(path.x_s, times.s) - path.velocity_s))
    return float(torch.cat(losses).mean())


def velocity_quality(model: NeuralFlowMap) -> dict[str, Any]:
    """Held-out loss and sample quality of a velocity model of clocks."""
    generator = torch.Generator().manual_seed(0)
    drawn = best_of_n(
        model,
        lambda x, cond: x.new_zeros(len(x)),
        num_samples=SAMPLES,
        steps=STEPS,
        sampler="velocity",
        chunk_size=CHUNK,
        generator=generator,
    )
    histogram = exactness.clock_histogram(drawn.samples)
    return {
        "held_out_loss": held_out_loss(model, generator),
        "samples": SAMPLES,
        "sampler_steps": STEPS,
        "readable": histogram.readable,
        "total_variation_of_times": float(
            exactness.total_variation(histogram.probabilities, prior_histogram())
        ),
    }


def map_quality(flow_map: NeuralFlowMap, teacher: NeuralFlowMap) -> dict[str, Any]:
    """Look-ahead RMSE by time, and the teacher's Euler steps that it is worth."""
    generator = torch.Generator().manual_seed(1)
    trajectory = reference(teacher.velocity, TRAJECTORIES, teacher.data_shape, generator=generator)
    errors = lookahead_errors(flow_map, trajectory, velocity=teacher.velocity)
    matched = teacher_nfe_matched(teacher.velocity, trajectory, errors)
    return {"t": list(errors.t), "rmse": errors.rmse, "teacher_nfe_matched": matched}


def card_with(card: str, metrics: dict[str, Any]) -> str:
    """The model card with a table of the measured figures at its end."""
    rows = ["| | |", "|---|---|"]
    for name, value in metrics.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, figure in parts:
            figures = figure if isinstance(figure, list) else [figure]
            text = " ".join(f"{f:.4g}" for f in figures)
            rows.append(f"| {f'{name} {part}'.strip()} | {text} |")
    kept = card.split(HEADING)[0].rstrip()
    return "\n".join([kept, "", HEADING, "", *rows, ""])


def stored_dtype(path: Path) -> torch.dtype | None:
    """In what the weights of the export at ``path`` are stored, None if in several."""
    dtypes = {value.dtype for value in load_file(path / WEIGHTS).values() if value.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def measure(path: Path) -> dict[str, Any]:
    """Measure the export at ``path`` and write it again with the figures."""
    card = path / CARD
    if not card.is_file():
        raise UserError(f"{card} is missing: give the folder of an export")
    model = fmtt.load(path)
    is_map = model.config["kind"] == "flow_map"
    metrics = map_quality(model, fmtt.load("clock-teacher")) if is_map else velocity_quality(model)
    config = model.config
    save(
        model,
        path,
        network=config["network"]["name"],
        network_args=config["network"]["args"],
        kind=config["kind"],
        trained=config["trained"],
        metrics=config["metrics"] | {"measured": metrics},
        card=card_with(card.read_text(encoding="utf-8"), metrics),
        dtype=stored_dtype(path),
    )
    return metrics


def main(argv: list[str]) -> int:
    """Exit status 0, or 2 with one line for a wrong argument."""
    try:
        if len(argv) != 1:
            raise UserError("give one export folder: python -m train.demo.measure EXPORT")
        for name, value in measure(Path(argv[0])).items():
            print(f"{name}: {value}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
