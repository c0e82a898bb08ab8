"""A Lightning logger that appends to one CSV file and survives resuming."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from fmtt.errors import UserError
from fmtt.files import atomic_write

SAVE_SECONDS = 5.0
"""Least time between two writes of the whole file."""


class MetricsCsv(Logger):
    """Writes ``metrics.csv``: a row per logged step, a column per metric.

    Args:
        path: the file. Rows after ``start_step`` (of a run that was killed past its last checkpoint)
            are dropped.
        start_step: the step that this run continues from.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, str]] = {}
        self._saved_at = float("-inf")
        if path.is_file() and start_step > 0:
            with open(path, newline="") as file:
                for row in csv.DictReader(file):
                    if (row.get("step") or "").isdecimal() and int(row["step"]) <= start_step:
                        self.rows[int(row["step"])] = {k: v for k, v in row.items() if v and k != "step"}

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def columns(self) -> set[str]:
        """Every metric that some row holds."""
        return {key for row in self.rows.values() for key in row}

    def latest(self, column: str, first: int, last: int) -> float:
        """The last value of ``column`` in the rows from ``first`` to ``last``; nan where there is none."""
        steps = [s for s, row in self.rows.items() if first <= s <= last and column in row]
        return float(self.rows[max(steps)][column]) if steps else float("nan")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        return None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(int(step or 0), {})
        row.update({k: f"{float(v):.6g}" for k, v in metrics.items() if k != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write the file now. A full disk is reported; training goes on."""
        self._saved_at = time.monotonic()
        if not self.rows:
            return
        try:
            self._write()
        except UserError as error:
            rank_zero_warn(f"{error}; going on without it")

    def _write(self) -> None:
        columns = sorted(self.columns())
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            for step in sorted(self.rows):
                writer.writerow({"step": step, **self.rows[step]})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()
