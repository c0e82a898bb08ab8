"""The training configuration: typed, documented, validated. YAML and ``key=value`` only override it."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from fmtt.errors import UserError
from train.config_adversarial import AdversarialConfig
from train.config_check import check
from train.config_objective import GuidanceConfig, ObjectiveConfig
from train.config_pretrained import LoraConfig, read_teacher
from train.config_times import TimesConfig, WeightingConfig


@dataclass
class NetworkConfig:
    """The student."""

    network: str = "dit"
    """A name in fmtt.models.checkpoint.NETWORKS."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network's class, apart from the data's shape."""
    interpolant: str = "linear"
    prediction: str = "velocity"
    """velocity | endpoint: what the network's output means."""
    init: str = "teacher"
    """teacher | scratch | an export (a folder or a shipped name), such as a flow map to fine-tune: initial
    weights when distilling. From a teacher or an export, network and args are its own."""
    anchored: bool = False
    """The student has the velocity of its teacher, a dit, exactly: its weights move from the teacher's, at
    t = s, to its own, at t = 1. It trains slower; a large batch at one s and t costs the same. One that goes
    on from an anchored export (init) is anchored whatever this says."""
    lora: LoraConfig | None = None
    """Of a student of a text-to-image teacher: {rank: 16, ...}; without, a copy is trained in full."""
    second_time: str = "zero_init"
    """zero_init | averaged: how such a student learns of its second time."""
    own_guidance: bool = False
    """Such a student, not of flux, takes the guidance scale as an input: one pass in place of two."""
    checkpointing: bool = False
    """Such a student repeats its blocks in the reverse pass: less memory for one forward more, or two where
    the target has a derivative. Of no use to lsd, esd and tvm, whose gradient goes through theirs."""


@dataclass
class OptimizerConfig:
    """Muon for the matrices of hidden layers, AdamW for the rest."""

    lr: float = 1e-3
    muon_lr: float = 3e-3
    """0 gives all parameters to AdamW."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    warmup: int = 100
    """Steps of linear warm-up."""
    decay_share: float = 0.4
    """Share of the run, at its end, over which learning rates fall linearly."""
    final: float = 0.02
    """Learning rate at the end, relative to the highest."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for none."""


@dataclass
class EmaConfig:
    """Averages of the student's weights."""

    half_lives: list[float] = field(default_factory=lambda: [200.0])
    """In steps, one average each; the first is measured during training. An export has it, or --half-life."""
    target_half_life: float = 0.0
    """With teacher: self, targets come from an average with this half-life; 0 for the weights themselves."""


@dataclass
class SourceConfig:
    """One of several sources and its share relative to the others'."""

    source: str = "???"
    weight: float = 1.0


@dataclass
class DataConfig:
    """Where training samples come from."""

    source: str = "clock"
    """A folder of shards (python -m data write, encode), http(s) address, pipe: command, procedural set."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Several sources mixed by weight, in place of source."""
    max_bad_fraction: float = 0.01
    """Share of damaged samples that is skipped and replaced; beyond it training stops."""
    timeout: float = 30.0
    """Seconds to wait for a remote shard, and how often to try."""
    tries: int = 3
    value_range: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    """The data values that stand for black and white in pictures."""


@dataclass
class TrainerConfig:
    """Handed to lightning.Trainer."""

    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    """auto | ddp | fsdp | hsdp, or another name that Lightning knows. fsdp: weights in pieces over all
    processes; hsdp: over those of a node, and a whole copy on each node."""
    precision: str = "32-true"
    """32-true, bf16-mixed, ..., or auto: bf16-mixed where the processor multiplies bfloat16 natively."""
    accumulate: int = 1
    accelerator: str = "auto"
    compile: bool = False
    """Compile the networks (needs a C++ compiler): a third faster on a CPU, after a minute or two."""
    timeout: float = 1800.0
    """Seconds that a process waits for the others before the run ends: longer than an evaluation takes."""


@dataclass
class CheckpointConfig:
    """Training state on disk."""

    every_steps: int = 200
    keep: int = 2
    best: str = "auto"
    """A column of metrics.csv, smaller is better: the checkpoint with the smallest value is kept too, and
    look-ahead errors are measured at every checkpoint. auto: lookahead/map_1@0 where there is a teacher,
    which teacher: self and pretrain have not. Empty for none."""


@dataclass
class LogConfig:
    """Loggers. CSV is always written."""

    every_steps: int = 10
    wandb: bool = False
    """Also log to Weights & Biases: online if logged in, else offline under the run folder."""
    project: str = "fmtt"


@dataclass
class EvaluateConfig:
    """What is measured during training with the averaged weights."""

    every_steps: int = 250
    num_samples: int = 64
    """Look-ahead error: this many trajectories of the teacher's ODE. 0 for none."""
    grid_samples: int = 8
    """Columns of the 1/2/4-step sample grid."""


@dataclass
class Config:
    """A training run."""

    run_dir: str = "???"
    seed: int = 0
    max_steps: int = 1000
    batch_size: int = 128
    """Samples per process and pass; an optimizer step sees trainer.accumulate of them on every process."""
    teacher: Any = ""
    """Whose velocity is distilled. The export of a velocity model: a folder or a shipped name. self: the
    student's own diagonal, trained from scratch. oracle:NAME: the exact velocity of a closed-form law.
    {pretrained: ..., family: ..., guidance: ..., dtype: ...}: a pipeline; see train.config_pretrained."""
    student: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    times: TimesConfig = field(default_factory=TimesConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    derivative: str = "jvp"
    """jvp | finite_difference | flash_jvp | auto: how objectives differentiate; see fmtt.flow.derivative."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def _clear_objective(merged: Any, overrides: list[str]) -> None:
    """An objective that the command line gives, by name or as a sum, takes the place of the file's."""
    whole = ("objective", "objective.name", "objective.terms")  # objective.terms.lsd=2 changes one of the sum
    given = OmegaConf.from_dotlist([item for item in overrides if item.partition("=")[0] in whole])
    named, summed = (bool(OmegaConf.select(given, key)) for key in whole[1:])
    if named or summed:
        merged.objective.terms = {}
    if summed and not named:
        merged.objective.name = ""


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file over the defaults, then ``key=value`` overrides.

    Raises:
        UserError: for a missing file, malformed YAML, an unknown key (naming the nearest), a wrong type
            or a value out of range.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise UserError(f"config {path} does not exist")
    for item in overrides or []:
        if "=" not in item or item.startswith("="):
            raise UserError(f"override {item!r} is not of the form key=value")
        if "[" in item.partition("=")[0]:
            raise UserError(f"override {item!r}: give the whole list, as in key=[1, 2]")
    schema = OmegaConf.structured(Config)
    source = str(path)
    try:
        loaded = OmegaConf.load(path)
        if loaded is None or not OmegaConf.is_dict(loaded):
            raise UserError(f"config {path} must be a mapping of keys to values")
        _check_sections(loaded, source)
        merged = OmegaConf.merge(schema, loaded)
        source = "the command line"
        given = OmegaConf.from_dotlist(list(overrides or []))
        _check_sections(given, source)
        _clear_objective(merged, overrides or [])
        merged = OmegaConf.merge(merged, given)
        source = str(path)
        if OmegaConf.is_missing(merged, "run_dir") or not merged.run_dir:
            raise UserError(f"config {path} has no run_dir: the folder that the run is written to")
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise UserError(f"config {path}: {key} has no value (???)")
        config = cast(Config, OmegaConf.to_object(merged))
        config.teacher = read_teacher(config.teacher)
    except ConfigKeyError as error:
        raise UserError(_unknown_key(str(error.full_key or error.key), source)) from error
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{source}: {key}{str(error).splitlines()[0]}") from error
    except TypeError as error:  # what OmegaConf says of a list in a mapping's place
        raise UserError(f"{source}: {error}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:  # also what OmegaConf says of a file that holds a single value
        raise UserError(f"config {path} must be a readable mapping of keys to values: {error}") from error
    check(config)
    return config


def _all_keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys


def _check_sections(given: Any, source: str) -> None:
    """What OmegaConf lets pass or refuses without naming the key."""
    for key in sorted(OmegaConf.missing_keys(given)):
        raise UserError(f"{source}: {key} has no value (???)")
    whole = Config(run_dir="", student=NetworkConfig(lora=LoraConfig()))  # with every section
    _check_containers(given, OmegaConf.structured(whole), source)


def _check_containers(given: Any, schema: Any, source: str, prefix: str = "") -> None:
    for key, node in schema.items():
        if key not in given or not OmegaConf.is_config(node):
            continue
        value = given[key]
        if value is None and f"{prefix}{key}" == "student.lora":
            continue
        if OmegaConf.is_list(node) and not OmegaConf.is_list(value):
            raise UserError(f"{source}: {prefix}{key} must be a list, in brackets")
        if OmegaConf.is_dict(node) and not OmegaConf.is_dict(value):
            hint = f", such as {{{next(iter(node))}: ...}}" if node else ""
            raise UserError(f"{source}: {prefix}{key} must be a mapping{hint}")
        if OmegaConf.is_dict(node):
            _check_containers(value, node, source, f"{prefix}{key}.")


def _unknown_key(key: str, source: str) -> str:
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    near = difflib.get_close_matches(key, _all_keys(schema), n=1, cutoff=0.5)
    return f"{source}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
