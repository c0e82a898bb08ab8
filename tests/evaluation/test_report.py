"""Figures leave no global state behind; the report is one page that fetches nothing."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest
import torch

from fmtt.evaluation import figures, pictures, style
from fmtt.evaluation.ascent import RewardErrors
from fmtt.evaluation.lookahead import LookaheadErrors, Trajectory
from fmtt.evaluation.report import Report, number
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.dit import DiT

T = (0.0, 0.5)
NAMES = ("denoiser", "map_1", "map_2", "map_4")
LINES = {name: [0.4, 0.2] for name in NAMES}
ERRORS = LookaheadErrors(T, LINES, {name: [0.02, 0.01] for name in NAMES})
HISTORY = {"t": [0.0, 0.5, 1.0], "ess": [1.0, 0.4, 0.9], "log_z": [0.0, 0.2, 0.3]}
HISTORY |= {"thermodynamic_length": [0.0, 0.6, 1.1], "resampled": [0, 1, 0]}


def every_figure():
    yield figures.rmse_curves(ERRORS)
    yield figures.reward_curves(RewardErrors(T, LINES, LINES, LINES, LINES))
    yield figures.reward_curves(RewardErrors(T, LINES, LINES, {}, {}))
    yield figures.tilt_curves({"fmtt_flow_map": HISTORY, "fmtt_denoiser": HISTORY})
    yield figures.hit_rate_curves([100, 200], {"base": [0.0, 0.1], "best_of_n": [None, 0.5]}, 64)
    yield figures.histogram_bars({"tilted": [0.2, 0.8]}, ["12:00", "6:00", "12:00"], xlabel="time")
    images = torch.rand(5, 3, 8, 8) * 2 - 1
    yield pictures.sample_rows({"1 step": images, "teacher": images[:4]})
    yield pictures.particle_grids({"before": images, "after": images}, {"before": ["3:47"] * 5})
    network = DiT((1, 8, 8), patch=4, dim=16, depth=1, heads=2)
    grey = Trajectory(T, torch.randn(2, 3, 1, 8, 8), torch.randn(3, 1, 8, 8))
    yield pictures.lookahead_grid(NeuralFlowMap(network, Linear(), (1, 8, 8)), grey)


def test_every_figure_draws_and_leaves_no_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    for figure in every_figure():
        data = style.png(figure, dpi=50)
        assert data.startswith(b"\x89PNG") and len(data) > 1000
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_many_blocks_of_pictures_stand_in_several_rows():
    images = torch.rand(4, 3, 8, 8)
    sizes = [
        pictures.particle_grids(dict.fromkeys(map(str, range(blocks)), images), columns=4).get_size_inches()
        for blocks in (4, 5, 14)
    ]
    assert len({width for width, _ in sizes}) == 1 and sizes[0][0] < 16
    assert [round(height / sizes[0][1]) for _, height in sizes] == [1, 2, 4]


def test_binomial_error_is_never_zero():
    assert figures.binomial_standard_error(0.0, 64) > 0
    assert figures.binomial_standard_error(0.5, 400) == pytest.approx(0.025, rel=0.01)


class Balance(HTMLParser):
    """Counts tags and collects every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img", "link"}:
            self.open.append(tag)
        self.sources += [v or "" for k, v in attrs if k in {"src", "href", "srcset", "data"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_self_contained_page(tmp_path):
    report = Report("A <map> & its tilt", "First.\n\nSecond.", footer="made by a test")
    report.section("Curves", "Text with <b>no</b> markup.").figure(figures.rmse_curves(ERRORS), "RMSE over t")
    report.section("Numbers").table(
        ["t", "denoiser", "map"], [[0.0, 0.123456, None], [0.5, 2, True]], "errors"
    )
    report.numbers({"ess": 0.5})
    path = report.write(tmp_path / "deep" / "report.html")
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in parser.sources)
    assert "A &lt;map&gt; &amp; its tilt" in page and "<b>no</b>" not in page
    assert "0.1235" in page and "prefers-color-scheme: dark" in page
    assert list(path.parent.iterdir()) == [path]


def test_report_refuses_ragged_tables_and_orphan_blocks():
    with pytest.raises(ValueError, match="section"):
        Report("x").text("y")
    with pytest.raises(ValueError, match="2 cells"):
        Report("x").section("s").table(["a", "b"], [[1]])


def test_numbers_in_cells():
    assert [number(v) for v in (None, 3, 0.00012345, True, float("inf"))] == [
        "–",
        "3",
        "0.0001234",
        "True",
        "inf",
    ]
