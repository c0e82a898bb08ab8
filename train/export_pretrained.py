"""Exports of students of a text-to-image pipeline: a folder for fmtt.load, or a whole pipeline's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fmtt.errors import UserError
from fmtt.files import atomic_folder
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers import export
from fmtt.models.diffusers.student import merge, network_of
from train.pretrained import lora_of

PIPELINE = "model_index.json"


def write_export(
    student: NeuralFlowMap,
    out_dir: Path,
    about: Mapping[str, Any],
    *,
    merged: bool,
    pipeline: bool,
    card: str,
    trained: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write the student of a checkpoint's ``export`` entry, and compare what was written with it.

    Args:
        merged: fold LoRA adapters into the transformer, which is then written too.
        pipeline: write all parts of the pipeline, the flow map in its folder ``flow_map``. With adapters
            that are kept, the transformer is the teacher's.

    Raises:
        UserError: when there are no adapters to merge, or the folder cannot be written.
    """
    args = about["network_args"]
    lora = lora_of(args)
    if merged and lora is None:
        raise UserError("--merge: the student was trained in full and has no adapters; leave it out")
    if merged:
        merge(student)
        lora = None
    options: dict[str, Any] = {"lora": lora, "trained": trained, "metrics": metrics, "card": card}
    if pipeline:
        _write_pipeline(student, out_dir, args, options)
        check_written(student, out_dir / "flow_map", out_dir / export.TRANSFORMER if lora is None else None)
        return
    export.save(student, out_dir, pretrained=_absolute(args["pretrained"]), kind=about["kind"], **options)
    check_written(student, out_dir, out_dir / export.TRANSFORMER if lora is None else None)


def _write_pipeline(
    student: NeuralFlowMap, out_dir: Path, args: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    from fmtt.models.diffusers.pretrained import load_pipeline

    empty = out_dir.is_dir() and not any(out_dir.iterdir())
    if out_dir.exists() and not (out_dir / PIPELINE).is_file() and not empty:
        raise UserError(f"{out_dir} exists and is not a pipeline: choose another folder")
    if out_dir.exists() and not empty and not (out_dir / "flow_map").is_dir():
        raise UserError(f"{out_dir} is a pipeline without a flow map, a base: choose another folder")
    dtype = getattr(torch, args["dtype"])
    own = {} if options["lora"] is not None else {"transformer": network_of(student).transformer}
    whole = load_pipeline(args["pretrained"], dtype=dtype, **own)
    if own:
        whole.register_modules(scheduler=export.scheduler_of(student))
    with atomic_folder(out_dir) as new:
        whole.save_pretrained(new, safe_serialization=True)
        (new / "README.md").write_text(str(options["card"]), encoding="utf-8")
        export.save(student, new / "flow_map", pretrained="..", own_transformer=False, **options)


def _absolute(pretrained: str) -> str:
    """A folder's whole path, so that the export can be loaded from anywhere; a hub id as it is."""
    folder = Path(pretrained).expanduser()
    return str(folder.resolve()) if folder.is_dir() else pretrained


def check_written(student: NeuralFlowMap, folder: Path, transformer: Path | None) -> None:
    """Compare the files with the student, tensor by tensor and bit for bit.

    Raises:
        UserError: when a tensor is missing or differs.
    """
    network = network_of(student)
    expected = export.trained_tensors(network)
    found = _differences(expected, [folder / export.TRAINED]) if expected else []
    if transformer is not None:
        files = sorted(transformer.glob("*.safetensors"))
        found += _differences(network.transformer.state_dict(), files)
    if found:
        raise UserError(f"the export {folder} does not reproduce the student ({found[0]}); export again")


def _differences(expected: Mapping[str, Tensor], files: list[Path]) -> list[str]:
    """Names of tensors that the files do not hold as they are."""
    left = dict(expected)
    for file in files:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (the file is no mapping)
                if name in left and torch.equal(content.get_tensor(name), left[name].cpu()):
                    del left[name]
    return sorted(left)
