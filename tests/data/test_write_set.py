"""Any arrays: latents and embeddings come back as they were, whoever wrote them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import webdataset as wds

from data.index import INDEX_NAME, Array, Header, read_index
from data.shards import ShardBatches
from data.verify import verify_shards
from data.write_set import Sample, write_set
from data.write_shards import write_procedural
from fmtt.errors import UserError

HEADER = Header(
    name="latents",
    seed=0,
    num_samples=10,
    shard_size=4,
    x=Array((4, 3, 3), "bfloat16"),
    cond={
        "prompt": Array((5, 6), "float16"),
        "pooled": Array((6,), "bfloat16"),
        "mask": Array((5,), "bool"),
        "tokens": Array((5,), "int32"),
    },
)


def sample(index: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    cond = {
        "prompt": torch.randn(5, 6, generator=generator).half(),
        "pooled": torch.randn(6, generator=generator).bfloat16(),
        "mask": torch.arange(5) <= index % 5,
        "tokens": np.arange(index, index + 5, dtype=np.int32),
    }
    return Sample(torch.randn(4, 3, 3, generator=generator).bfloat16(), cond, {"prompt": f"clock {index}"})


def samples(start: int, stop: int) -> Iterator[Sample]:
    return (sample(index) for index in range(start, stop))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")
    }


def test_latents_and_embeddings_come_back(tmp_path: Path):
    index = write_set(tmp_path, HEADER, samples).index
    assert read_index(tmp_path / INDEX_NAME) == index and verify_shards(tmp_path).problems == []
    batches = ShardBatches(tmp_path, 10)
    batch = batches.batch(0)
    assert batch.cond is not None
    order = [shard * 4 + row for shard, row in batches.order.batch(0).tolist()]
    for row, number in enumerate(order):
        expected = sample(number)
        assert torch.equal(batch.x[row], torch.as_tensor(expected.x).float())
        for name, value in expected.cond.items():
            tensor = torch.as_tensor(value)
            assert torch.equal(
                batch.cond[name][row], tensor.float() if tensor.is_floating_point() else tensor
            )
    assert {name: value.dtype for name, value in batch.cond.items()} == {
        "prompt": torch.float32,
        "pooled": torch.float32,
        "mask": torch.bool,
        "tokens": torch.int32,
    }


def test_members_are_named_as_documented_and_readable_without_this_reader(tmp_path: Path):
    index = write_set(tmp_path, HEADER, samples).index
    stored = next(iter(wds.WebDataset(str(tmp_path / index.shards[0].name), shardshuffle=False)))  # type: ignore[attr-defined]
    assert {key for key in stored if not key.startswith("__")} == {
        *("x.safetensors", "cond.prompt.npy", "cond.pooled.safetensors", "cond.mask.npy", "cond.tokens.npy"),
        "json",
    }
    assert torch.equal(safetensors.torch.load(stored["x.safetensors"])["value"], torch.as_tensor(sample(0).x))
    prompt = np.load(io.BytesIO(stored["cond.prompt.npy"]), allow_pickle=False)
    assert np.array_equal(prompt, torch.as_tensor(sample(0).cond["prompt"]).numpy())
    assert json.loads(stored["json"]) == {"index": 0, "prompt": "clock 0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(x=s.x.float()), r"sample 6: x is float32 \(4, 3, 3\), not bfloat16"),
        (lambda s: s._replace(x=s.x[:3]), r"x is bfloat16 \(3, 3, 3\), not bfloat16 \(4, 3, 3\)"),
        (lambda s: s._replace(x=s.x * float("nan")), "x holds numbers that are not finite"),
        (lambda s: s._replace(cond={}), "sample 6: cond.prompt is missing"),
        (lambda s: s._replace(cond={**s.cond, "more": s.x}), "cond.more is not in the header"),
    ],
)
def test_a_sample_unlike_the_header_is_refused_by_shard_and_number(tmp_path: Path, change, message: str):
    def wrong(start: int, stop: int) -> Iterator[Sample]:
        return (change(sample(i)) if i == 6 else sample(i) for i in range(start, stop))

    with pytest.raises(UserError, match=message) as caught:
        write_set(tmp_path, HEADER, wrong)
    assert "latents-000001.tar" in str(caught.value)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["latents-000000.tar"]
    write_set(tmp_path, HEADER, samples)
    assert verify_shards(tmp_path).problems == []


def test_too_few_samples_and_wrong_names_are_refused(tmp_path: Path):
    for short in (lambda start, stop: [], lambda start, stop: [sample(0)]):
        with pytest.raises(UserError, match=r"latents-000000.tar: [01] samples came, not 4"):
            write_set(tmp_path / "a", HEADER, short)
    for name in ("Prompt", "a.b", "", "a/b"):
        with pytest.raises(UserError, match="small letters, digits and _"):
            write_set(tmp_path / "b", replace(HEADER, cond={name: Array((1,), "bool")}), samples)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="part must be i of n"):
        write_set(tmp_path / "b", HEADER, samples, part=(2, 2))


def test_parts_give_the_same_files_in_any_order(tmp_path: Path):
    write_set(tmp_path / "whole", HEADER, samples)
    out = tmp_path / "parts"
    assert len(write_set(out, HEADER, samples, part=(1, 2)).index.shards) == 1
    assert not (out / INDEX_NAME).exists()
    assert write_set(out, HEADER, samples, part=(1, 2)).kept == 1
    assert len(write_set(out, HEADER, samples, part=(0, 2)).index.shards) == 3
    assert contents(out) == contents(tmp_path / "whole")
    assert write_set(out, HEADER, samples, part=(0, 2)).kept == 2
    assert contents(out) == contents(tmp_path / "whole")


def test_several_processes_write_and_check_the_same_bytes(tmp_path: Path):
    seen: list[int] = []
    write_procedural("clock", tmp_path / "one", 20, shard_size=4)
    write_procedural("clock", tmp_path / "two", 20, shard_size=4, processes=2, progress=seen.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert seen == [4, 8, 12, 16, 20]


@pytest.mark.slow
def test_problems_come_in_order_from_several_processes(tmp_path: Path):
    index = write_procedural("mixture", tmp_path, 40, shard_size=4).index
    for number in (7, 2, 5):
        (tmp_path / index.shards[number].name).unlink()
    checked: list[tuple[int, int]] = []
    found = verify_shards(tmp_path, lambda done, total: checked.append((done, total)), processes=2)
    assert found == verify_shards(tmp_path)
    assert [problem.where for problem in found.problems] == [index.shards[n].name for n in (2, 5, 7)]
    assert checked[-1] == (40, 40) and len(checked) == 10


@pytest.mark.slow
def test_a_write_that_is_killed_goes_on_with_another_number_of_processes(root: Path, tmp_path: Path):
    write_procedural("clock", tmp_path / "whole", 3_000, shard_size=250)
    command = [sys.executable, "-m", "data", "write", "clock", "--out", str(tmp_path / "out")]
    command += ["--num-samples", "3000", "--shard-size", "250", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list((tmp_path / "out").glob("*.tar")):
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):  # its workers end with it
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert not (tmp_path / "out" / INDEX_NAME).exists()
    write_procedural("clock", tmp_path / "out", 3_000, shard_size=250)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
