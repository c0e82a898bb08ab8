"""The demo's report: every picture and every number on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fmtt
from fmtt.baselines.best_of_n import best_of_n
from fmtt.evaluation import figures, pictures, style
from fmtt.evaluation.lookahead import LookaheadErrors, Trajectory, reference
from fmtt.evaluation.report import Report
from fmtt.files import atomic_write
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards import clock, clock_judge
from fmtt.rewards.clock_reward import ClockReward
from train.demo import hit_rate

VALUES = clock.VALUE_RANGE
PICTURED = 8
TILT_PARTICLES = 256
"""Enough for the weighted particles to settle on the target."""


class Models(NamedTuple):
    """The flow maps of a demo."""

    teacher: NeuralFlowMap
    distilled: NeuralFlowMap
    shipped: NeuralFlowMap


def tilt_pictures(flow_map: NeuralFlowMap, teacher: NeuralFlowMap) -> tuple[Tensor, Tensor]:
    """Particles before the tilt (the base sampler's) and after it (FMTT, resampled), 16 each."""
    generator = torch.Generator().manual_seed(3)
    reward = ClockReward(hit_rate.TARGET, hit_rate.SHARPNESS)
    before = best_of_n(
        flow_map,
        reward,
        num_samples=2 * PICTURED,
        steps=hit_rate.BASE_STEPS,
        sampler="velocity",
        velocity=teacher.velocity,
        generator=generator,
    )
    after = fmtt.tilt(
        flow_map,
        reward,
        num_particles=TILT_PARTICLES,
        chunk_size=hit_rate.CHUNK,
        num_steps=hit_rate.BASE_STEPS,
        weights="path",
        velocity=teacher.velocity,
        generator=generator,
    )
    return before.samples, after.resample(2 * PICTURED, generator)


def sample_rows(flow_map: NeuralFlowMap, teacher: NeuralFlowMap, trajectory: Trajectory) -> dict[str, Tensor]:
    """Samples at 1/2/4/8 steps beside the teacher's, all from the same noise."""
    noise = trajectory.states[0, :PICTURED]
    rows: dict[str, Tensor] = {}
    for steps in (1, 2, 4, 8):
        x = noise
        for k in range(steps):
            x = flow_map(x, k / steps, (k + 1) / steps)
        rows["1 step" if steps == 1 else f"{steps} steps"] = x
    rows["teacher"] = trajectory.endpoint[:PICTURED]
    return rows


@torch.no_grad()
def write_report(out: Path, models: Models, evaluated: dict[str, Any], tilted: dict[str, Any]) -> list[str]:
    """Write ``out/report.html`` and the pictures under ``out/report``; returns their names."""
    teacher, distilled, shipped = models
    generator = torch.Generator().manual_seed(1)
    trajectory = reference(teacher.velocity, PICTURED, teacher.data_shape, tol=1e-5, generator=generator)
    folder, written = out / "report", []

    def picture(name: str, figure: Any) -> bytes:
        png = style.png(figure)
        with atomic_write(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        written.append(f"{name}.png")
        return png

    report = Report(
        "FMTT on the clock",
        "A flow map distilled from a pretrained velocity model, how well it sees ahead, "
        f"and what steering by that look-ahead does to the odds of a clock that reads {hit_rate.TARGET}.",
    )
    report.section(
        "Look-ahead",
        "What each look-ahead makes of one half-made sample. The denoiser averages over every clock that the "
        "noise may still become; the flow map shows the one it will become.",
    )
    grid = pictures.lookahead_grid(distilled, trajectory, velocity=teacher.velocity, values=VALUES)
    report.figure(picture("lookahead_grid", grid), "The map just distilled.")
    grid = pictures.lookahead_grid(shipped, trajectory, velocity=teacher.velocity, values=VALUES)
    report.figure(picture("lookahead_grid_shipped", grid), "The shipped map, trained longer.")
    for key, title in (("lookahead", "the map just distilled"), ("lookahead_shipped", "the shipped map")):
        _accuracy(report, picture, key, title, evaluated[key])

    report.section("Samples", "The same noise in every row.")
    rows = sample_rows(distilled, teacher, trajectory)
    report.figure(picture("samples", pictures.sample_rows(rows, values=VALUES)), "The map just distilled.")
    rows = sample_rows(shipped, teacher, trajectory)
    report.figure(picture("samples_shipped", pictures.sample_rows(rows, values=VALUES)), "The shipped map.")

    _tilt(report, picture, distilled, teacher, tilted)
    report.write(out / "report.html")
    return written


def _accuracy(report: Report, picture: Any, key: str, title: str, measured: dict[str, Any]) -> None:
    errors = LookaheadErrors(tuple(measured["t"]), measured["rmse"], measured["standard_error"])
    figure = figures.rmse_curves(errors, reference="the teacher's ODE")
    report.figure(picture(key, figure), f"Root mean square error against the true endpoint: {title}.")
    columns = ["t", *measured["rmse"]]
    rows = [[t, *(v[k] for v in measured["rmse"].values())] for k, t in enumerate(measured["t"])]
    report.table(columns, rows, f"RMSE per pixel, {title}.")
    matched = measured["teacher_nfe_matched"]
    report.numbers(
        {f"Euler steps of the teacher with the error of {k} at t = 0": n for k, n in matched.items()}
    )


def _tilt(
    report: Report, picture: Any, flow_map: NeuralFlowMap, teacher: NeuralFlowMap, tilted: dict[str, Any]
) -> None:
    summary, checked = tilted["summary"], tilted["exact"]
    report.section(
        f"Tilting to {summary['target']}",
        f"The share of {hit_rate.RUNS} independent runs whose single returned sample the judge reads within "
        f"{summary['tolerance_minutes']} minutes of {summary['target']}, at equal cost. The judge is not the "
        "reward that is optimised.",
    )
    before, after = tilt_pictures(flow_map, teacher)
    groups = {"before": before, f"after: tilted to {summary['target']}": after}
    captions = {name: clock_judge.captions(images) for name, images in groups.items()}
    report.figure(picture("particles", pictures.particle_grids(groups, captions, columns=4, values=VALUES)))
    figure = figures.hit_rate_curves(summary["budgets"], summary["hit_rate"], hit_rate.RUNS)
    report.figure(picture("hit_rate", figure))
    for key, title in (("hit_rate", "Hit rate"), ("mean_reward", "Mean reward of the returned samples")):
        columns = ["budget", *summary[key]]
        rows = [[b, *(v[k] for v in summary[key].values())] for k, b in enumerate(summary["budgets"])]
        report.table(columns, rows, f"{title}; the better variant of each method.")
    rows = [
        [f"{method}: {variant}", *(f"{o['hit_rate']:.2f} ({o['passes']:.0f})" for o in outcomes)]
        for method, variants in tilted["variants"].items()
        for variant, outcomes in variants.items()
    ]
    report.table(
        ["variant", *map(str, summary["budgets"])], rows, "Every variant: hit rate (passes per run)."
    )

    report.section(
        "Exactness",
        f"At sharpness {checked['sharpness']:g} the tilted law keeps much of the prior, so its shape can be "
        f"compared: {checked['particles']} weighted particles against {checked['base_samples']} unguided "
        "samples reweighted by e^r, over 24 half-hour bins of the time that the judge reads.",
    )
    edges = [clock.format_time(30 * k) for k in range(25)]
    figure = figures.histogram_bars(checked["histograms"], edges, xlabel="time read by the judge")
    report.figure(picture("times", figure))
    report.figure(picture("tilt_curves", figures.tilt_curves({"FMTT, path weights": checked["history"]})))
    shown = {k.replace("_", " "): v for k, v in checked.items() if not isinstance(v, dict | list)}
    readable = {f"share of readable clocks, {name}": share for name, share in checked["readable"].items()}
    report.numbers(shown | readable)
