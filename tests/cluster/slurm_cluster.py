"""A real SLURM with two nodes on this machine: munged, slurmctld and two slurmd, all under one folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")

CONF = """\
ClusterName=fmtt-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_delay=1
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait={kill_wait}
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why a cluster cannot be started here, or an empty string. As root, Debian's packages are installed."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.getuid() != 0:
        return "a test cluster needs root"
    if not absent:
        return ""
    if shutil.which("apt-get") is None:
        return f"{', '.join(absent)} missing, and there is no apt-get to install them with"
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update", "-qq"], install):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return f"{' '.join(install)} failed: {done.stderr.strip()[-300:]}" if done.returncode else ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, found by asking for them all at once."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 900.0) -> None:
    """Poll until ``condition()``; AssertionError naming ``what`` when it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


class Cluster:
    """Commands on the running test cluster.

    Attributes:
        folder: configuration, logs and state of the daemons.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in list(self.environment):  # a job of an outer cluster is none of ours
            if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF":
                del self.environment[name]

    def run(self, *command: str | Path, **environment: str) -> str:
        """Standard output of a command that has to succeed."""
        options = {"capture_output": True, "text": True, "timeout": 120}
        own = {**self.environment, **environment}
        done = subprocess.run([str(word) for word in command], env=own, **options)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, *arguments: str | Path, cwd: Path, **environment: str) -> str:
        """sbatch from ``cwd``; the job's number."""
        own = {**self.environment, **environment}
        command = ["sbatch", "--parsable", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """``scontrol show job`` as a dictionary."""
        line = self.run("scontrol", "show", "job", "-o", job).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def wait(self, job: str, seconds: float = 900.0) -> str:
        """The state in which a job (or every task of an array) ended."""

        def states() -> list[str]:
            lines = self.run("scontrol", "show", "job", "-o", job).splitlines()
            words = [word for line in lines for word in line.split() if word.startswith("JobState=")]
            return [word.removeprefix("JobState=") for word in words]

        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")
        wait_for(f"the end of job {job}", lambda: not set(states()) & set(going), seconds)
        return "+".join(sorted(set(states())))


@contextmanager
def running_cluster(folder: Path, kill_wait: int = 10) -> Iterator[Cluster]:
    """Start the daemons in ``folder``, and stop exactly them afterwards.

    Args:
        kill_wait: seconds between SIGTERM and SIGKILL of a cancelled job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        CONF.format(folder=folder, host=host, ports=free_ports(3), kill_wait=kill_wait)
    )
    for name in ("state", "spool/n1", "spool/n2"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    cluster = Cluster(folder)
    try:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
        cluster.run("munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
        cluster.run("slurmctld", "-c")
        for node in ("n1", "n2"):
            cluster.run("slurmd", "-N", node)
        wait_for("two idle nodes", lambda: _ready(cluster), 60)
        yield cluster
    finally:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            wait_for("an empty queue", lambda: _emptied(cluster), 60)
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
            _stop(folder / f"{name}.pid")


def _ready(cluster: Cluster) -> bool:
    return cluster.run("sinfo", "-h", "-N", "-o", "%t").split() == ["idle", "idle"]


def _emptied(cluster: Cluster) -> bool:
    if not cluster.run("squeue", "-h"):
        return True
    cluster.run("scancel", "--user=root")
    time.sleep(1)
    return False


def _stop(pid_file: Path) -> None:
    """SIGTERM by the daemon's own pid, then SIGKILL."""
    if not pid_file.is_file() or not pid_file.read_text().strip():
        return
    pid = int(pid_file.read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        with suppress(AssertionError):
            wait_for(f"the end of {pid_file.stem}", lambda: not _alive(pid), 15)
            return
        os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
