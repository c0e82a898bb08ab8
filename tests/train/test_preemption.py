"""Signals are noted once, given back afterwards, and lead to a requeued job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from train.checkpoints import newest_checkpoint
from train.preemption import SIGNALS, job_id, listening, requeue, signals_held

SCONTROL = """\
#!/bin/sh
echo "$@" >> {folder}/calls
case $1 in
    show) echo "JobId=7 JobState={state} Reason=None" ;;
    requeue) {requeue} ;;
esac
"""


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``scontrol(state, requeue)``: a job 7 whose scontrol answers so; the calls are in tmp_path/calls."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    def install(state: str = "RUNNING", requeue: str = "true") -> Path:
        program = tmp_path / "scontrol"
        program.write_text(SCONTROL.format(folder=tmp_path, state=state, requeue=requeue))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        return tmp_path / "calls"

    return install


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_handlers_are_given_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with listening() as outer:
        assert outer.signal is None
        with listening() as inner:
            assert inner is outer
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), next(each for each in SIGNALS if each != number))
        assert outer.signal is number  # the inner block gave nothing back
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with listening() as afresh:
        assert afresh.signal is None


def test_forked_workers_end_on_sigterm_only():
    with listening() as request:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM and request.signal is None


def test_a_second_ctrl_c_ends_the_process_at_once():
    child = os.fork()
    if child == 0:
        with listening() as request:
            request.listen_to_ctrl_c()
            os.kill(os.getpid(), signal.SIGINT)
            if request.signal is signal.SIGINT:
                os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_is_given_back_and_stays_ignored_where_it_is(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with listening() as request:
            assert signal.getsignal(signal.SIGINT) is handler
            request.listen_to_ctrl_c()
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal is (None if handler is signal.SIG_IGN else signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_processes_started_while_signals_are_held_outlive_them():
    with listening() as request:
        with signals_held():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            # To this thread: one to the process goes to any other thread that does not hold it.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert request.signal is None
        assert request.signal is signal.SIGUSR1
        for number in (*SIGNALS, signal.SIGINT):
            child.send_signal(number)
        time.sleep(0.1)
        child.communicate(b"\n")
    assert child.returncode == 0


def test_without_slurm_nothing_is_requeued(scontrol):
    assert job_id() == "" and requeue() == "the same command continues"


def test_a_running_job_is_requeued(scontrol):
    calls = scontrol()
    assert requeue() == "job 7 is requeued"
    assert calls.read_text().splitlines() == ["show job -o 7", "requeue 7"]


def test_an_array_task_is_requeued_alone(scontrol, monkeypatch):
    calls = scontrol()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert requeue() == "job 5_2 is requeued"
    assert calls.read_text().splitlines()[-1] == "requeue 5_2"


def test_a_cancelled_job_stays_cancelled(scontrol):
    calls = scontrol(state="COMPLETING")
    assert "SLURM is ending job 7 (COMPLETING)" in requeue()
    assert calls.read_text().splitlines() == ["show job -o 7"]


def test_a_refused_requeue_is_reported(scontrol):
    scontrol(requeue="echo 'Only batch jobs are accepted' >&2; exit 1")
    assert requeue().startswith("job 7 cannot be requeued: Only batch jobs are accepted")


def test_without_scontrol_the_batch_script_does_it(scontrol, monkeypatch, tmp_path):
    scontrol()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "the batch script has to requeue job 7" in requeue()


@pytest.mark.slow
@pytest.mark.parametrize("sent, to_rank", [(signal.SIGUSR1, 0), (signal.SIGUSR1, 1), (signal.SIGINT, 1)])
def test_two_processes_stop_together_whichever_is_asked(sent, to_rank, root, pretrain_yaml, tmp_path):
    folder = tmp_path / "run/checkpoints"
    settings = (
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "max_steps=1000000",
        "evaluate.every_steps=1000000",
    )
    command = [sys.executable, "-m", "train", "pretrain", str(pretrain_yaml), f"run_dir={tmp_path}/run"]
    process = subprocess.Popen(
        [*command, *settings, "checkpoint.every_steps=10"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 400
        while not list(folder.glob("step-*.ckpt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill((process.pid, int(child))[to_rank], sent)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    # The rank that speaks for all names the signal it got, or SIGTERM for another's; of Ctrl-C all know.
    number = (sent, signal.SIGINT if sent == signal.SIGINT else signal.SIGTERM)[to_rank]
    name = "Ctrl-C" if sent == signal.SIGINT else number.name
    assert process.returncode == 128 + number
    step = int(output.split(f"stopped by {name} after step ")[1].split(";")[0])
    assert newest_checkpoint(folder) == (step, folder / f"step-{step:08d}.ckpt")
