"""Two and three real processes: the result of one, and no hang when one of them fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.steering.ranks_program import CASES, SEARCHES, SLEEP, content, search, tilt

PROGRAM = Path(__file__).with_name("ranks_program.py")
Launch = Callable[[int, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launch(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """``launch(size, mode)``: what each rank of so many processes saw; a rank without a file left none."""

    def run(size: int, mode: str) -> list[dict[str, Any]]:
        out = tmp_path_factory.mktemp("ranks")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
        own = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "test", **group}
        started = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(out), mode],
                env={**os.environ, **own, "RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            said = [process.communicate(timeout=120)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        files = [out / f"rank{rank}.pt" for rank in range(size)]
        assert files[0].is_file(), "\n".join(said)
        return [torch.load(file, weights_only=True) if file.is_file() else {} for file in files]

    return run


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What one process finds."""
    found = {f"tilt {name}": content(tilt(**options)) for name, options in CASES.items()}
    return found | {f"search {name}": content(search(**options)) for name, options in SEARCHES.items()}


@pytest.mark.parametrize("size", (2, pytest.param(3, marks=pytest.mark.slow)))
def test_many_processes_find_what_one_does(launch: Launch, expected: dict[str, Any], size: int) -> None:
    ranks = launch(size, "all")
    assert all(r.keys() == ranks[0].keys() for r in ranks)
    for name, one in expected.items():
        assert all(one.keys() == r[name].keys() for r in ranks), name
        for key, value in one.items():
            for rank in ranks:
                assert torch.equal(rank[name][key].nan_to_num(), ranks[0][name][key].nan_to_num()), (
                    name,
                    key,
                )
            exact = "network" not in name and key != "history.guidance_ratio"
            rtol, atol = (0.0, 0.0) if exact else (1e-4, 1e-5)
            torch.testing.assert_close(
                ranks[0][name][key],
                value,
                equal_nan=True,
                msg=lambda m, of=(name, key): f"{of}: {m}",
                rtol=rtol,
                atol=atol,
            )
    assert sum(bool(expected[f"tilt {name}"]["history.resampled"].any()) for name in CASES) == len(CASES)
    # Without a generator, and whatever each process's own random state, all ranks hold one run.
    assert all(torch.equal(r["unseeded"], ranks[0]["unseeded"]) for r in ranks)
    assert torch.equal(ranks[0]["alone"], expected["tilt exact"]["samples"])
    assert not torch.equal(ranks[0]["alone"], ranks[1]["alone"])
    _check_errors([r["said"] for r in ranks], size)
    # The rank that is not answered gives up; the one that slept then finds it gone.
    assert ranks[0]["waited"] < SLEEP and "more than 2 s" in ranks[0]["said"]["stuck"]
    assert ranks[0]["said"]["stuck"].startswith(f"RankError: rank 0 of {size}")


def _check_errors(said: list[dict[str, str]], size: int) -> None:
    """A rank's error is every rank's."""
    few = f"1 particles cannot be shared by {size} processes"
    for rank, messages in enumerate(said):
        own = "ValueError: the judge is down"
        others = f"RankError: rank 1 of {size} failed looking ahead from t=0: {own}"
        assert messages["broken"] == (own if rank == 1 else others)
        assert messages["infinite"].startswith("UserError: the reward returned a value that is not finite")
        assert (rank == 1) != messages["infinite"].endswith(f"(on rank 1 of {size})")
        for name in ("seeds", "arguments", "states"):
            assert messages[name].startswith(f"UserError: the {size} processes were given different")
        assert few in messages["few"]


def test_a_killed_rank_ends_the_run(launch: Launch) -> None:
    ranks = launch(2, "killed")
    assert not ranks[1]
    assert ranks[0]["said"]["killed"].startswith("RankError: rank 0 of 2")
    assert "another process ended" in ranks[0]["said"]["killed"]


@pytest.mark.slow
def test_commands_under_torchrun_write_what_one_process_writes(run_python: Any, tmp_path: Path) -> None:
    steer = ("clock-map", "--reward", "clock:time=3:47", "--num-particles", "5", "--num-steps", "4")
    commands = {"tilt": (), "search": ("--keep", "2", "--rounds", "2")}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for command, options in commands.items():
        found = {}
        for name, launcher in {"one": (), "two": torchrun}.items():
            out = tmp_path / f"{command}-{name}"
            done = run_python(*launcher, "-m", "fmtt", command, *steer, *options, "--out", out)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("wrote ") == 1
            found[name] = load_file(out / "samples.safetensors")
        for key, value in found["one"].items():
            torch.testing.assert_close(found["two"][key], value, rtol=1e-3, atol=1e-4)
    wrong = run_python(
        *torchrun, "-m", "fmtt", "tilt", *steer, "--num-particles", "1", "--out", tmp_path / "x"
    )
    assert wrong.returncode != 0 and "1 particles cannot be shared by 2 processes" in wrong.stderr
