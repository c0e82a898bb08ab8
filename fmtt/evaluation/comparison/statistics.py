"""Rows of a comparison's table: means over runs with their standard errors, per method and budget."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmtt.evaluation.comparison.cells import Runs


class Row(NamedTuple):
    """One method at one budget. Standard errors are over independent runs.

    Attributes:
        amount: the budget, in the comparison's unit.
        reward, judge, restoration: means of the returned samples; ``judge`` is nan without a judge.
        diversity: mean root-mean-square distance between the samples that two runs return.
        passes, reward_calls, judge_calls, seconds: means spent per run; the judge reads what a run returns.
        top: whether ``judge`` (without one ``reward``) is the highest at this budget, or within one standard
            error of the difference to it.
    """

    method: str
    amount: float
    runs: int
    reward: float
    reward_se: float
    judge: float
    judge_se: float
    restoration: float
    restoration_se: float
    diversity: float
    passes: float
    reward_calls: float
    judge_calls: float
    seconds: float
    top: bool = False


def join(parts: Sequence[Runs]) -> Runs:
    """All runs of one method at one budget."""
    return Runs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def mean(values: Tensor) -> tuple[float, float]:
    """(mean of (R,), its standard error).

    Values that are all 0 or 1 are a rate; its standard error is taken from the Agresti-Coull centre, so that
    it is never 0.
    """
    n = len(values)
    average = float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        centre = (average * n + 2) / (n + 4)
        return average, math.sqrt(centre * (1 - centre) / (n + 4))
    return average, float(values.std()) / math.sqrt(n) if n > 1 else float("nan")


def diversity(best: Tensor) -> float:
    """Mean root-mean-square distance between pairs of samples (R, *D)."""
    if len(best) < 2:
        return float("nan")
    flat = best.double().flatten(1)
    return float(torch.pdist(flat).mean()) / math.sqrt(flat.shape[1])


def row(method: str, amount: float, runs: Runs) -> Row:
    """Statistics of one method's runs at one budget."""
    return Row(
        method,
        amount,
        len(runs.reward),
        *mean(runs.reward),
        *mean(runs.judge),
        *mean(runs.restoration),
        diversity=diversity(runs.best),
        passes=float(runs.passes.mean()),
        reward_calls=float(runs.reward_calls.mean()),
        judge_calls=float((~runs.judge.isnan()).double().mean()),
        seconds=float(runs.seconds.mean()),
    )


def mark_top(rows: Sequence[Row]) -> list[Row]:
    """The rows, those at the top of their budget marked."""
    marked = []
    for r in rows:
        rivals = [_score(q) for q in rows if q.amount == r.amount]
        best, best_se = max(rivals)
        score, se = _score(r)
        marked.append(r._replace(top=bool(score >= best - math.hypot(se, best_se) or score == best)))
    return marked


def _score(r: Row) -> tuple[float, float]:
    return (r.reward, r.reward_se) if math.isnan(r.judge) else (r.judge, r.judge_se)


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values with a heading."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return buffer.getvalue()
