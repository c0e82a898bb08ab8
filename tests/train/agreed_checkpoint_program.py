"""Trains in two processes that a launcher would have started; prints which checkpoints each of them checked.

python agreed_checkpoint_program.py pretrain CONFIG.yaml key=value ...
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch

import train.checkpoints
from train.__main__ import main


def child(rank: int, port: int, pipe: int) -> int:
    process = os.fork()
    if process:
        return process
    status, looked, check = 1, [], train.checkpoints.check

    def noted(path: Path) -> None:
        looked.append(path.name)
        check(path)

    try:
        train.checkpoints.check = noted
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK=str(rank))
        status = main(sys.argv[1:])
        os.write(pipe, f"{json.dumps({rank: looked})}\n".encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    receive, send = os.pipe()
    processes = [child(rank, free, send) for rank in (0, 1)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    os.close(send)
    said: dict[str, list[str]] = {}
    with open(receive) as file:
        for line in file:
            said |= json.loads(line)
    print(json.dumps(said, sort_keys=True))
    sys.exit(max(map(abs, statuses)))
