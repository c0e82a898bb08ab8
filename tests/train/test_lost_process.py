"""How an error is told to come from a process that does not answer."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from train.lost_process import LostProcess, naming_lost_processes

LOST = {
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer\nmore"): (
        "(Connection closed by peer)"
    ),
    RuntimeError("Gloo connectFullMesh failed with [pair.cc:144] no error"): "(no error)",
    dist.DistBackendError("NCCL error: remote process exited"): "(NCCL error: remote process exited)",
    dist.DistStoreError(""): "(DistStoreError)",
}


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_process_that_does_not_answer_is_named(error: RuntimeError) -> None:
    with pytest.raises(LostProcess) as caught, naming_lost_processes():
        raise error
    said = str(caught.value)
    assert LOST[error] in said and "the same command continues" in said and "\n" not in said
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("cannot open /data/igloo/x"), RuntimeError(""), OSError("gloo")]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_lost_processes():
        raise error
    assert caught.value is error
