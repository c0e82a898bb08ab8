"""Stages that are finished once: each leaves a stamp, and is done again only if its inputs change."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmtt.files import write_json


def fingerprint(*parts: Any) -> str:
    """A digest of settings (JSON values) and files (Path: their bytes; a folder: its files' bytes)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\1")
    return digest.hexdigest()[:16]


class Stages:
    """The stages of one output folder; stamps are kept under ``root/.stages``.

    Attributes:
        seconds: what each stage took, in this call or when it was done.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds: dict[str, float] = {}

    def run(
        self,
        name: str,
        title: str,
        inputs: str,
        work: Callable[[], dict[str, Any]],
        *,
        resumable: bool = False,
        product: Path | None = None,
    ) -> dict[str, Any]:
        """Do ``work``, which writes ``root/name``, unless it is done for the same ``inputs``.

        Args:
            inputs: a :func:`fingerprint` of everything the result depends on.
            resumable: whether what an interrupted run left is kept for ``work`` to continue.
            product: what must be there for the stage to count as done; its folder if omitted.

        Returns:
            What ``work`` returned (JSON values), also when it was done earlier.
        """
        folder, stamp_path = self.root / name, self.root / ".stages" / f"{name}.json"
        stamp = _read(stamp_path)
        done = "result" in stamp and (product or folder).exists()
        if done and stamp.get("inputs") == inputs:
            print(f"{title}: done earlier ({stamp['seconds']:.0f} s)", flush=True)
            self.seconds[name] = stamp["seconds"]
            return stamp["result"]
        spent = 0.0
        if resumable and not done and stamp.get("inputs") == inputs:
            spent = stamp.get("seconds", 0.0)
        elif folder.is_dir():
            stamp_path.unlink(missing_ok=True)  # first: a folder that is half deleted must not count as done
            shutil.rmtree(folder)
        write_json(stamp_path, {"inputs": inputs, "seconds": spent})
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{title} ...", flush=True)
        start = time.monotonic()
        try:
            result = work()
        except BaseException:
            spent += time.monotonic() - start
            write_json(stamp_path, {"inputs": inputs, "seconds": round(spent, 1)})
            raise
        seconds = round(spent + time.monotonic() - start, 1)
        write_json(stamp_path, {"inputs": inputs, "result": result, "seconds": seconds})
        print(f"{title}: {seconds:.0f} s", flush=True)
        self.seconds[name] = seconds
        return result


def _read(path: Path) -> dict[str, Any]:
    """A stamp; empty if there is none or it is damaged."""
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}
