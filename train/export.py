"""From a run's checkpoint to an export folder, checked by loading it again."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.checkpoint import load, save
from train.build import build_network
from train.checkpoints import final_checkpoint
from train.config import NetworkConfig, ObjectiveConfig
from train.export_pretrained import write_export
from train.global_batch import global_batch
from train.pretrained import is_pretrained, rebuild_student
from train.teacher import ORACLE, SELF
from train.throughput import PREFIX

CARD = """# {title}

{what}, exported from a training run.

| | |
|---|---|
| network | {network} {network_args} |
| interpolant, prediction | {interpolant}, {prediction} |
| data shape | {data_shape} |
| objective | {objective} |
| steps x batch | {steps} of {max_steps} x {batch_size} |
| seed | {seed} |
| data | {data} |
| teacher | {teacher} |
| started from | {init} |
| weights | average with half-life {half_life} |

{metrics}
Load it with `fmtt.load("{folder}")`.
"""


def rebuild(content: dict[str, Any], half_life: str | None = None) -> NeuralFlowMap:
    """The student of a checkpoint, carrying its averaged weights."""
    about, averages = content["export"], content["ema"]
    average = averages[half_life or next(iter(averages))]
    prefix = "student."
    weights = {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    if is_pretrained(about):
        return rebuild_student(content, weights | average)
    student = build_network(
        NetworkConfig(about["network"], about["network_args"], about["interpolant"], about["prediction"]),
        tuple(about["data_shape"]),
    )
    student.load_state_dict(weights | average)
    return student.eval()


def last_metrics(run_dir: Path) -> dict[str, float]:
    """The last value of every column of the run's metrics.csv."""
    path = run_dir / "metrics.csv"
    if not path.is_file():
        return {}
    latest: dict[str, float] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            latest |= {k: float(v) for k, v in row.items() if v and k not in ("step", "epoch")}
    return {k: v for k, v in latest.items() if math.isfinite(v)}  # JSON has no nan


def export_run(
    run_dir: str | Path,
    out_dir: str | Path,
    *,
    merged: bool = False,
    pipeline: bool = False,
    half: bool = False,
    half_life: float | None = None,
) -> Path:
    """Write the final averaged weights of ``run_dir`` as an export and check it against them.

    Args:
        merged, pipeline: for students of a text-to-image pipeline; see train.export_pretrained.
        half: store the weights in float16, which halves the file; they are computed with in float32. The
            velocity of an anchored map is then its teacher's to that rounding.
        half_life: which of the run's averages, in steps; the first of ema.half_lives if omitted.

    Raises:
        UserError: when the run holds no checkpoint or no such average, or the export does not reproduce
            the student.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    step, content = final_checkpoint(run_dir)
    _check_replaced(out_dir, content["export"], read_config(run_dir / "config.yaml"))
    average = _which_average(content["ema"], half_life)
    student = rebuild(content, average)
    config = read_config(run_dir / "config.yaml")
    about, metrics = content["export"], last_metrics(run_dir)
    metrics = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
    if (merged or pipeline) and not is_pretrained(about):
        option = "--merge" if merged else "--diffusers"
        raise UserError(f"{option} is for students of teacher: {{pretrained: ...}}; leave it out")
    if half and is_pretrained(about):
        raise UserError("--half is for networks of this library: a pipeline's weights keep their dtype")
    if half:
        student = _rounded(student)
    trained = {
        "steps": step,
        "max_steps": config["max_steps"],
        "batch_size": global_batch(config),
        "seed": config["seed"],
        "objective": config["objective"],
        "times": config["times"],
        "guidance": _guidance(config),
        "optimizer": config["optimizer"],
        "data": data_name(config["data"]),
        "teacher": teacher_name(config["teacher"]),
        "init": _started_from(config, about["kind"]),
        "ema_half_life": float(average),
        "value_range": config["data"]["value_range"],
    }
    card = CARD.format(
        title=out_dir.name,
        what="A velocity model" if about["kind"] == "velocity" else "A two-time flow map",
        network=about["network"],
        network_args=about["network_args"],
        interpolant=about["interpolant"],
        prediction=about["prediction"],
        data_shape=tuple(about["data_shape"]),
        objective=" + ".join(ObjectiveConfig(**config["objective"]).weights()),
        steps=step,
        max_steps=config["max_steps"],
        batch_size=trained["batch_size"],
        seed=config["seed"],
        data=trained["data"],
        teacher=trained["teacher"] or "none",
        init=trained["init"],
        half_life=f"{average} steps" + (", stored in half precision" if half else ""),
        metrics=_metrics_table(metrics, next(iter(content["ema"]))),
        folder=out_dir.name,
    )
    if is_pretrained(about):
        told: dict[str, Any] = {"card": card, "trained": trained, "metrics": metrics}
        write_export(student, out_dir, about, merged=merged, pipeline=pipeline, **told)
        return out_dir
    save(
        student,
        out_dir,
        network=about["network"],
        network_args=about["network_args"],
        kind=about["kind"],
        trained=trained,
        metrics=metrics,
        card=card,
        dtype=torch.float16 if half else None,
    )
    check_export(student, out_dir)
    return out_dir


def _rounded(student: NeuralFlowMap) -> NeuralFlowMap:
    """The student with weights that float16 holds exactly.

    Raises:
        UserError: when a weight is beyond float16's range.
    """
    with torch.no_grad():
        for name, p in student.named_parameters():
            p.copy_(p.half())
            if not bool(torch.isfinite(p).all()):
                raise UserError(f"--half: {name} has values that float16 cannot hold: leave it out")
    return student


def data_name(data: dict[str, Any]) -> str:
    """What an export calls the data of a run's configuration: the source, or all that were mixed."""
    mixed = [f"{Path(str(s['source'])).name} (weight {s['weight']:g})" for s in data.get("sources", [])]
    return ", ".join(mixed) or Path(str(data["source"])).name


def teacher_name(teacher: Any) -> str:
    """What an export calls the teacher of a run's configuration."""
    where = teacher["pretrained"] if isinstance(teacher, dict) else str(teacher)
    return Path(where).name if Path(where).exists() or not isinstance(teacher, dict) else where


def _which_average(averages: Mapping[str, Any], half_life: float | None) -> str:
    """The key of the average with ``half_life``, or of the first."""
    if half_life is None:
        return next(iter(averages))
    if f"{half_life:g}" not in averages:
        raise UserError(f"--half-life {half_life:g}: the run's ema.half_lives are {', '.join(averages)}")
    return f"{half_life:g}"


def _started_from(config: Mapping[str, Any], kind: str) -> str:
    """Whose weights a run's student began with; a velocity model, which is not distilled, with its own."""
    init, teacher = config["student"].get("init", "teacher"), teacher_name(config["teacher"])
    if init == "teacher":
        alone = kind == "velocity" or teacher in ("", SELF) or teacher.startswith(ORACLE)
        init = "scratch" if alone else teacher
    return "random weights" if init == "scratch" else Path(init).name


def read_config(path: Path) -> dict[str, Any]:
    """The resolved configuration that a run left.

    Raises:
        UserError: when it is missing or damaged.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError) as error:
        raise UserError(f"{path} is missing or damaged: put it back, or train again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: put it back, or train again")
    return cast(dict[str, Any], config)


def _check_replaced(out_dir: Path, about: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse to replace another model's export; one of the same kind, network, data and teacher may be.

    Raises:
        UserError: saying what is there.
    """
    for place in (out_dir, out_dir / "flow_map"):
        try:
            found = json.loads((place / "config.json").read_text(encoding="utf-8"))
            network = found["network"]["name"].removeprefix("anchored_")
            there = [found["kind"], network, str(tuple(found["data_shape"]))]
            there += [str(found["trained"].get(name) or "none") for name in ("data", "teacher")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # no export, which is for the writer to say
        own = [about["kind"], about["network"].removeprefix("anchored_"), str(tuple(about["data_shape"]))]
        own += [data_name(config["data"]), teacher_name(config["teacher"]) or "none"]
        names = ("kind", "network", "data shape", "data", "teacher")
        differs = [
            f"{name} {theirs}, here {mine}"
            for name, theirs, mine in zip(names, there, own, strict=True)
            if theirs != mine
        ]
        if differs:
            raise UserError(f"{out_dir} holds another model's export ({differs[0]}): give another folder")


def _guidance(config: Mapping[str, Any]) -> dict[str, Any]:
    """The guidance that the student learnt; with a pipeline the teacher's, at a scale or in an interval."""
    teacher = config["teacher"]
    if not isinstance(teacher, Mapping):
        return dict(config.get("guidance", {}))
    given = teacher.get("guidance") or []
    ends = given if isinstance(given, list) else [given]
    return {"scale": [float(ends[0]), float(ends[-1])]} if ends else {}


def _metrics_table(metrics: dict[str, float], half_life: str) -> str:
    rows = [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
    header = f"| metric during training, look-ahead of the average with half-life {half_life} | last value |"
    return "\n".join([header, "|---|---|", *rows, ""]) if rows else ""


@torch.no_grad()
def check_export(student: NeuralFlowMap, out_dir: Path) -> None:
    """Compare the loaded export with the student on random states and times, bit for bit."""
    again = load(out_dir)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *student.data_shape, generator=generator)
    s = torch.rand(4, generator=generator)
    t = s + (1 - s) * torch.rand(4, generator=generator)
    classes = again.config["network"]["args"].get("num_classes", 0)
    cond = {"label": torch.arange(4) % (classes + 1)} if classes else None
    if not torch.equal(again(x, s, t, cond), student(x, s, t, cond)):
        raise UserError(f"the export {out_dir} does not reproduce the student; export again")
