"""One training run: from a configuration to a finished run folder; the same call continues it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import warnings
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from data.module import DataModule
from fmtt.errors import UserError
from fmtt.files import atomic_write, write_json
from train.agreed_checkpoint import agreed_checkpoint
from train.best import LOOKAHEAD, best_column
from train.build import build_module, choose
from train.callbacks import Evaluation, PlainProgress, SyncHint
from train.checkpoints import Checkpoints, WholeCheckpoints
from train.compiled import compile_networks
from train.config import Config, to_yaml
from train.export import last_metrics
from train.lost_process import naming_lost_processes
from train.metrics import MetricsCsv
from train.preemption import StopRequest, listening, requeue, signals_held
from train.principal import fit_principal
from train.run_lock import run_lock
from train.same_run import check_same_run
from train.sources import reading_options, sources_of
from train.strategy import FSDP, HSDP, ShardedStrategy
from train.throughput import Throughput

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


def precision(config: Config) -> str:
    """``trainer.precision`` with ``auto`` resolved for this machine."""
    wanted = choose("trainer.precision", config.trainer.precision, PRECISIONS)
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


def loggers(config: Config, run_dir: Path, start_step: int) -> list[Logger]:
    """The CSV file, and Weights & Biases if asked for."""
    result: list[Logger] = [MetricsCsv(run_dir / "metrics.csv", start_step)]
    if config.log.wandb:
        import_module("wandb")  # says its name if it is missing: Lightning's own error does not
        logged_in = bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in _netrc()
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = WandbLogger(
            name=run_dir.name,
            save_dir=run_dir,
            project=config.log.project,
            offline=not logged_in,
            id=_wandb_id(run_dir),
        )
        wandb._wandb_init.pop("anonymous", None)  # wandb warns of it whatever its value
        with signals_held():  # wandb's own process has to outlive the signal that asks training to stop
            _ = wandb.experiment
        result.append(wandb)
    return result


def _netrc() -> str:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.read_text()
    except OSError:
        return ""


def _wandb_id(run_dir: Path) -> str:
    """One id per run folder, so that a continued run is one run there."""
    path = run_dir / "wandb_id"
    if not path.is_file() and rank_zero_only.rank == 0:
        with atomic_write(path) as temporary:
            temporary.write_text(os.urandom(6).hex())
    return path.read_text().strip() if path.is_file() else ""


def build_strategy(config: Config) -> str | ShardedStrategy:
    """``trainer.strategy``: a name that Lightning knows, or the strategy of this project by that name.

    Raises:
        UserError: for a precision that sharded training has not.
    """
    c = config.trainer
    if c.strategy not in (FSDP, HSDP):
        return c.strategy
    if precision(config) == "16-mixed":
        raise UserError(
            f"trainer.precision: 16-mixed does not go with trainer.strategy={c.strategy}: use bf16-mixed"
        )
    return ShardedStrategy(c.devices * c.num_nodes, by_node=c.strategy == HSDP)


def build_trainer(config: Config, run_dir: Path, checkpoints: Checkpoints) -> Trainer:
    """The trainer, yet without loggers.

    Raises:
        UserError: for a combination of trainer settings that this machine or Lightning does not take.
    """
    terminal, number_format = sys.stdout.isatty(), precision(config)
    if terminal:
        import_module("rich")  # as above
    progress: Callback = RichProgressBar() if terminal else PlainProgress()
    measured_too = checkpoints.every_steps if checkpoints.metric.startswith(LOOKAHEAD) else 0
    evaluation = Evaluation(run_dir / "samples", config.evaluate, measured_too)
    try:
        trainer = Trainer(
            max_steps=config.max_steps,
            max_epochs=-1,
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            num_nodes=config.trainer.num_nodes,
            strategy=build_strategy(config),
            precision=number_format,  # pyright: ignore[reportArgumentType]
            accumulate_grad_batches=config.trainer.accumulate,
            log_every_n_steps=config.log.every_steps,
            logger=False,
            callbacks=[Throughput(config.log.every_steps), checkpoints, evaluation, progress, SyncHint()],
            plugins=[WholeCheckpoints()],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=terminal,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    # Lightning's handlers talk to the other ranks, and under SLURM save and requeue, from inside the signal:
    # with several processes that hangs. train.preemption answers the same signals.
    trainer._signal_connector.register_signal_handlers = lambda: None
    if isinstance(trainer.strategy, (DDPStrategy, ModelParallelStrategy)):
        trainer.strategy._timeout = timedelta(seconds=config.trainer.timeout)
    return trainer


def train(config: Config, stage: str) -> Path:
    """Run or continue ``pretrain`` or ``distill``; returns the run folder.

    On SIGUSR1, SIGTERM or Ctrl-C the running step ends and a checkpoint is written; the signals requeue a
    SLURM job. A second Ctrl-C ends the process at once.

    Raises:
        UserError: for anything in the configuration that cannot work, and while another process trains in
            the same folder.
        LostProcess: when another process of the run died or fell silent.
        KeyboardInterrupt: on Ctrl-C before the first step; SystemExit(128 + signal) when asked to stop. The
            same call continues.
    """
    with listening() as request:
        return _train(config, stage, request)


def _train(config: Config, stage: str, request: StopRequest) -> Path:
    run_dir = Path(config.run_dir)
    quiet_lightning()
    best, sources = best_column(config, stage), sources_of(config.data)
    data = DataModule(
        sources,
        config.batch_size,
        seed=config.seed,
        accumulate=config.trainer.accumulate,
        **reading_options(config.data),
    )
    module = build_module(config, stage, data.data_shape)
    if config.trainer.compile:
        compile_networks(module, config)
    c = config.checkpoint
    checkpoints = Checkpoints(run_dir / "checkpoints", c.every_steps, c.keep, best, request)
    trainer = build_trainer(config, run_dir, checkpoints)
    with run_lock(run_dir), agreed_checkpoint(trainer, run_dir / "checkpoints") as found:
        delete_unfinished(run_dir)
        if found is not None:
            check_same_run(config, run_dir)
            if found[0] >= config.max_steps:
                say(f"{run_dir}: already trained for {found[0]} steps")
                write_summary(run_dir, found[0])
                return run_dir
            say(f"{run_dir}: continuing from step {found[0]}")
        else:
            fit_principal(module.student, sources, seed=config.seed)
        write_config(config, run_dir)
        trainer.loggers = loggers(config, run_dir, found[0] if found else 0)
        try:
            with naming_lost_processes():
                trainer.fit(module, datamodule=data, ckpt_path=found[1] if found else None, weights_only=True)
        except SystemExit as stop:
            if stop.code == 1:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        if not checkpoints.stopped:
            write_summary(run_dir, trainer.global_step)
            return run_dir
    if rank_zero_only.rank != 0:
        raise SystemExit(0)  # launchers take anything else for a crash, and kill rank 0
    if checkpoints.interrupted:
        say(f"{run_dir}: stopped by Ctrl-C after step {trainer.global_step}; the same command continues")
        raise SystemExit(128 + signal.SIGINT)
    received = request.signal or signal.SIGTERM  # another rank's, if not this one's
    say(f"{run_dir}: stopped by {received.name} after step {trainer.global_step}; {requeue()}")
    raise SystemExit(128 + received)


@rank_zero_only
def say(text: str) -> None:
    """Print a line, once for all ranks."""
    print(text, flush=True)


@rank_zero_only
def delete_unfinished(run_dir: Path) -> None:
    """Delete the files that a kill left half-written; who holds the lock may."""
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "samples"):
        for temporary in folder.glob(".*.tmp"):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


@rank_zero_only
def write_config(config: Config, run_dir: Path) -> None:
    """The resolved configuration, beside what it leads to."""
    with atomic_write(run_dir / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config))


@rank_zero_only
def write_summary(run_dir: Path, steps: int) -> None:
    """The run's last metrics as summary.json."""
    content = {"run_dir": str(run_dir), "steps": steps, "metrics": last_metrics(run_dir)}
    write_json(run_dir / "summary.json", content)


def quiet_lightning() -> None:
    """Silence notices that ask for nothing."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.accelerators.cuda").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available on your system but is not used.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*is_leaf.*", FutureWarning)
    # Nothing here changes a block's output in place.
    warnings.filterwarnings("ignore", ".*FSDP2-wrapped module .* returned a view tensor.*")
