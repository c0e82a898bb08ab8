"""The Pareto figure: axes of rates end where rates do."""

from __future__ import annotations

import pytest

from fmtt.evaluation.comparison.figures import ROOM, pareto
from fmtt.evaluation.comparison.statistics import Row


def row(judge: float, error: float, amount: float) -> Row:
    empty = dict.fromkeys(Row._fields, 0.0)
    return Row(**{**empty, "method": "reno", "judge": judge, "judge_se": error, "passes": amount})


@pytest.mark.parametrize("judged", [(0.0, 0.0), (0.02, 0.3), (0.98, 0.1), (1.0, 1.0)])
def test_the_axis_of_a_rate_stays_within_0_and_1(judged: tuple[float, float]):
    rows = [row(value, 0.25, amount) for value, amount in zip(judged, (64.0, 256.0), strict=True)]
    scores = {"judge": "hit rate"}
    (axis,) = pareto(rows, "passes", scores, ("judge",)).axes
    (free,) = pareto(rows, "passes", scores).axes
    low, high = axis.get_ylim()
    assert -ROOM <= low < min(judged) and max(judged) < high <= 1 + ROOM
    assert free.get_ylim()[0] < -ROOM or free.get_ylim()[1] > 1 + ROOM
