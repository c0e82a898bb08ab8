"""The clock, end to end: distil, export, evaluate, tilt, report. Finished stages are not done again."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import data.procedural
import fmtt
from data.write_shards import write_procedural
from fmtt.errors import UserError
from fmtt.evaluation.lookahead import lookahead_errors, reference, teacher_nfe_matched
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.checkpoint import ASSETS
from train.config import Config, load_config, to_yaml
from train.demo import exact, hit_rate
from train.demo.beside import Beside
from train.demo.processes import workers
from train.demo.report import Models, write_report
from train.demo.stages import Stages, fingerprint
from train.export import export_run
from train.run import train

CONFIG = Path(__file__).parents[2] / "configs" / "clock" / "demo.yaml"
TEACHER, SHIPPED = "clock-teacher", "clock-map"
SHARD_SAMPLES = 20_000
LOOKAHEAD_SAMPLES = 256
LOOKAHEAD_KEYS = ("t", "rmse", "teacher_nfe_matched")
PROCESSES = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""The processors that are there, as long as the tilting experiment has work for them; with more than one, it
begins beside the training."""
TILT_SEED = 0
EXACT = {"num_particles": 64, "num_populations": 8, "base_samples": 4096}


def demo(out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Run what is not done yet under ``out``; returns the summary.

    Raises:
        UserError: when the shipped models are missing or ``out`` cannot be written.
    """
    make_writable(out, "--out")
    with Beside() as beside:
        return _demo(out, fresh, beside)


def _demo(out: Path, fresh: bool, beside: Beside) -> dict[str, Any]:
    for name in (TEACHER, SHIPPED):
        if not (ASSETS / name / "config.json").is_file():
            raise UserError(
                f"the shipped model {name} is missing: run `make teacher` and `make map`, or check out again"
            )
    if fresh:
        _clear(out)
    stages = Stages(out)
    shards = fingerprint("clock", SHARD_SAMPLES, Path(data.procedural.__file__))
    stages.run("data", "1/6 training shards", shards, lambda: _write_data(out / "data"), resumable=True)
    config = load_config(CONFIG)
    settings = to_yaml(config)
    config = replace(config, run_dir=str(out / "map"), data=replace(config.data, source=str(out / "data")))
    teacher_print = fingerprint(ASSETS / TEACHER)
    trained = fingerprint(shards, settings, teacher_print)
    checkpoints = out / "map" / "checkpoints"
    title, work = "2/6 distilling the flow map", lambda: _train(config, beside)
    stages.run("map", title, trained, work, resumable=True, product=checkpoints)
    weights = fingerprint(checkpoints)
    stages.run("export", "3/6 export", fingerprint(trained, weights), lambda: _export(out))
    exported = fingerprint(out / "export")
    inputs = fingerprint(exported, teacher_print, fingerprint(ASSETS / SHIPPED), LOOKAHEAD_SAMPLES)
    evaluated = stages.run("evaluate", "4/6 look-ahead accuracy", inputs, lambda: evaluate(out))
    code = [Path(hit_rate.__file__), Path(exact.__file__)]
    inputs = fingerprint(exported, teacher_print, EXACT, TILT_SEED, *code)
    tilted = stages.run("tilt", "5/6 tilting to 3:47", inputs, lambda: tilt(out, beside))
    inputs = fingerprint(exported, evaluated, tilted)
    page = out / "report.html"
    stages.run("report", "6/6 report", inputs, lambda: _report(out, evaluated, tilted), product=page)

    summary = {
        **{key: {k: evaluated[key][k] for k in LOOKAHEAD_KEYS} for key in ("lookahead", "lookahead_shipped")},
        "tilt": tilted["summary"],
        "seconds": stages.seconds,
    }
    write_json(out / "summary.json", summary)
    print(f"report: {page}\nnumbers: {out / 'summary.json'}")
    return summary


def _clear(out: Path) -> None:
    """Delete what an earlier demo left in ``out``; the stamps, which show that it was a demo, come last."""
    if not (out / ".stages").is_dir():
        if any(out.iterdir()):
            raise UserError(f"--out {out} was not made by the demo: choose another folder")
        return
    for path in sorted(out.iterdir(), key=lambda path: path.name == ".stages"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_data(folder: Path) -> dict[str, Any]:
    write_procedural("clock", folder, SHARD_SAMPLES)
    return {"samples": SHARD_SAMPLES}


def _train(config: Config, beside: Beside) -> dict[str, Any]:
    if PROCESSES > 1:
        beside.start(fmtt.load(TEACHER), seed=TILT_SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network gains nothing from more: on two cores it is a third quicker
    try:
        train(config, "distill")
    finally:
        torch.set_num_threads(threads)
    return {"steps": config.max_steps, "batch_size": config.batch_size}


def _export(out: Path) -> dict[str, Any]:
    export_run(out / "map", out / "export")
    return {}


def _report(out: Path, evaluated: dict[str, Any], tilted: dict[str, Any]) -> dict[str, Any]:
    return {"pictures": write_report(out, models(out), evaluated, tilted)}


def models(out: Path) -> Models:
    """The teacher, the map just distilled and the shipped one."""
    return Models(fmtt.load(TEACHER), fmtt.load(out / "export"), fmtt.load(SHIPPED))


def evaluate(out: Path) -> dict[str, Any]:
    """Look-ahead accuracy of both maps on the same trajectories of the teacher's ODE."""
    teacher, distilled, shipped = models(out)
    generator = torch.Generator().manual_seed(1)
    trajectory = reference(
        teacher.velocity, LOOKAHEAD_SAMPLES, teacher.data_shape, tol=1e-5, generator=generator
    )
    result: dict[str, Any] = {}
    for key, flow_map in (("lookahead", distilled), ("lookahead_shipped", shipped)):
        errors = lookahead_errors(flow_map, trajectory, velocity=teacher.velocity)
        result[key] = {
            "t": list(errors.t),
            "rmse": errors.rmse,
            "standard_error": errors.standard_error,
            "teacher_nfe_matched": teacher_nfe_matched(teacher.velocity, trajectory, errors),
        }
    write_json(out / "evaluate" / "summary.json", result)
    return result


def _hit_rates(distilled: NeuralFlowMap, teacher: NeuralFlowMap, beside: Beside) -> dict[str, Any]:
    return hit_rate.compare(distilled, teacher, seed=TILT_SEED, processes=PROCESSES, known=beside.outcomes())


def tilt(out: Path, beside: Beside) -> dict[str, Any]:
    """Hit rates at equal cost, and the exactness check."""
    teacher, distilled, _ = models(out)
    if PROCESSES == 1:
        checked = exact.check_exactness(distilled, teacher, **EXACT)
        rates = _hit_rates(distilled, teacher, beside)
    else:  # the check takes as long as a variant
        with workers(1) as pool:
            check = pool.submit(exact.check_exactness, distilled, teacher, **EXACT)
            rates = _hit_rates(distilled, teacher, beside)
            checked = check.result()
    keys = ("kl_to_base_law", "kl_to_closed_form", "noise_floor", "ess")
    summary = {
        "target": hit_rate.TARGET,
        "tolerance_minutes": hit_rate.TOLERANCE,
        "budgets": list(hit_rate.BUDGETS),
        "hit_rate": rates["hit_rate"],
        "mean_reward": rates["mean_reward"],
        "exact": {key: checked[key] for key in keys},
    }
    write_json(out / "tilt" / "summary.json", summary)
    return {"summary": summary, "exact": checked, "variants": rates["variants"]}
