"""Training jobs: two nodes, signals, time limits, cancelling, a second copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from slurm_cluster import Cluster, wait_for

from train.checkpoints import check, checkpoints, read_checkpoint

Submit = Callable[..., str]
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


def log(folder: Path, job: str) -> str:
    path = folder / f"{job}.out"
    return path.read_text() if path.is_file() else ""


def reached(run_dir: Path, step: int) -> Callable[[], bool]:
    return lambda: any(found >= step for found, _ in checkpoints(run_dir / "checkpoints"))


def final(run_dir: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """(step, weights and averages) of the newest checkpoint."""
    step, path = checkpoints(run_dir / "checkpoints")[-1]
    content = read_checkpoint(path)
    averages = {f"{h}.{k}": v for h, average in content["ema"].items() for k, v in average.items()}
    return step, content["state_dict"] | averages


def assert_same(one: Path, other: Path) -> None:
    (step, a), (other_step, b) = final(one), final(other)
    assert step == other_step and a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def assert_in_order(run_dir: Path) -> None:
    """Every checkpoint can be read, and nothing half-written is left."""
    found = checkpoints(run_dir / "checkpoints")
    assert found
    for _, path in found:
        check(path)
    assert not list(run_dir.rglob("*.tmp"))


def test_two_nodes_distil_the_clock(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    # What stands before python stands where a container's command would.
    container = tmp_path / "container"
    container.write_text('#!/bin/sh\necho "rank $SLURM_PROCID on $SLURMD_NODENAME"\nexec "$@"\n')
    container.chmod(0o755)
    settings = ("max_steps=6", "batch_size=4", "log.wandb=false", "evaluate.num_samples=4")
    settings += ("trainer.precision=32-true", "trainer.accelerator=cpu", f"run_dir={tmp_path}/run")
    job = submit(
        "distill", "configs/clock/demo.yaml", *settings, options=TWO_NODES, FMTT_CONTAINER=str(container)
    )
    state = cluster.wait(job)
    text = log(tmp_path, job)
    assert state == "COMPLETED", text
    assert "rank 0 on n1" in text and "rank 1 on n2" in text and text.count("finished") == 1
    assert final(tmp_path / "run")[0] == 6 and (tmp_path / "run/summary.json").is_file()


def test_a_signalled_job_ends_with_the_weights_of_an_undisturbed_one(
    submit: Submit, cluster: Cluster, toy_yaml: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    calm = submit("distill", toy_yaml, f"run_dir={whole}", options=TWO_NODES)
    disturbed = submit("distill", toy_yaml, f"run_dir={cut}", options=TWO_NODES)
    wait_for("a checkpoint", reached(cut, 100))
    cluster.run("scancel", "--signal=USR1", disturbed)
    assert cluster.wait(calm) == "COMPLETED", log(tmp_path, calm)
    assert cluster.wait(disturbed) == "COMPLETED", log(tmp_path, disturbed)
    text = log(tmp_path, disturbed)
    assert text.count("stopped by SIGUSR1 after step") == 1 and f"job {disturbed} is requeued" in text
    step = text.split("stopped by SIGUSR1 after step ")[1].split(";")[0]
    assert f"continuing from step {step}" in text  # not from the last multiple of every_steps
    assert cluster.show(disturbed)["Restarts"] == "1" and cluster.show(calm)["Restarts"] == "0"
    assert final(whole)[0] == 800
    assert_same(whole, cut)
    assert_in_order(cut)


def test_time_limit_second_copy_and_scancel(
    submit: Submit, cluster: Cluster, toy_yaml: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = ("distill", toy_yaml, f"run_dir={run_dir}", "max_steps=10000000")
    job = submit(*arguments, options=(*TWO_NODES, "--time=60", "--signal=B:USR1@60"))
    wait_for("a checkpoint", reached(run_dir, 100))

    copy = submit(*arguments, options=TWO_NODES)
    assert cluster.wait(copy) == "FAILED"
    refusal = [line for line in log(tmp_path, copy).splitlines() if line.startswith("error:")]
    assert len(refusal) == 1 and "is being trained by process" in refusal[0]
    assert f"(SLURM job {job})" in refusal[0] and cluster.show(copy)["Restarts"] == "0"

    hours, minutes, _ = cluster.show(job)["RunTime"].split(":")
    limit = 60 * int(hours) + int(minutes) + 2  # one to two minutes left, the last one announced
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    wait_for("a restart", lambda: cluster.show(job)["Restarts"] == "1")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for("going on", lambda: "continuing from step" in log(tmp_path, job))
    assert "stopped by SIGUSR1" in log(tmp_path, job)
    step = int(log(tmp_path, job).split("continuing from step ")[1].split()[0])
    wait_for("a later checkpoint", reached(run_dir, step + 100))
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"  # and stays so: the tasks' SIGTERM requeues nothing
    assert "stopped by SIGTERM" in log(tmp_path, job) and cluster.show(job)["Restarts"] == "1"
    assert_in_order(run_dir)


def test_a_signal_before_training_listens(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    """The batch script requeues what died of the signal; also a task of an array."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ -n "$SLURM_RESTART_COUNT" ] && exit 0\ntouch "$STARTED"\nexec sleep 300\n'
    )
    python.chmod(0o755)
    started = tmp_path / "started"
    stubs = {"FMTT_PYTHON": str(python), "STARTED": str(started)}
    job = submit("pretrain", "none.yaml", options=("--array=3",), **stubs)
    wait_for("the start", started.exists)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_3")
    assert cluster.wait(job) == "COMPLETED"
    assert cluster.show(f"{job}_3")["Restarts"] == "1"


def test_a_failed_task_is_not_requeued(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    """srun ends the other tasks with SIGTERM, which looks like the signal of a preemption."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$SLURM_PROCID" = 0 ] && sleep 1 && exit 2\nexec sleep 300\n')
    python.chmod(0o755)
    job = submit("pretrain", "none.yaml", options=TWO_NODES, FMTT_PYTHON=str(python))
    assert cluster.wait(job) == "FAILED"
    assert cluster.show(job)["ExitCode"] == "143:0" and cluster.show(job)["Restarts"] == "0"


def test_a_mistake_is_said_once_and_not_requeued(
    submit: Submit, cluster: Cluster, toy_yaml: Path, tmp_path: Path
) -> None:
    job = submit("distill", toy_yaml, f"run_dir={tmp_path}/run", "max_stpes=3")
    assert cluster.wait(job) == "FAILED" and cluster.show(job)["ExitCode"] == "2:0"
    assert "did you mean 'max_steps'" in log(tmp_path, job)
