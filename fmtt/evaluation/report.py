"""One self-contained HTML page: sections of text, pictures and tables; nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmtt.errors import UserError
from fmtt.evaluation.style import png
from fmtt.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def number(value: Any) -> str:
    """A table cell: floats to four significant digits, None as a dash, the rest as text."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}"


class Report:
    """A page under construction; every method but :meth:`write` returns the report, so calls chain.

    Args:
        title: the page's heading.
        intro: a lead paragraph, or several parted by blank lines.
        footer: a closing line.
    """

    def __init__(self, title: str, intro: str = "", *, footer: str = "") -> None:
        self.title, self.footer = title, footer
        self.intro = _paragraphs(intro)
        self.sections: list[dict[str, Any]] = []

    def section(self, title: str, text: str = "") -> Report:
        """Open a section; later figures and tables belong to it."""
        self.sections.append({"title": title, "blocks": []})
        return self.text(text)

    def text(self, text: str) -> Report:
        """Add plain-text paragraphs, parted by blank lines."""
        for paragraph in _paragraphs(text):
            self._add(kind="text", text=paragraph)
        return self

    def figure(self, figure: Figure | bytes, caption: str = "", *, alt: str = "") -> Report:
        """Add a picture: a matplotlib figure or PNG bytes. ``alt`` defaults to the caption."""
        data = figure if isinstance(figure, bytes) else png(figure)
        return self._add(
            kind="figure", data=base64.b64encode(data).decode(), caption=caption, alt=alt or caption
        )

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Report:
        """Add a table; the first cell of every row is its heading.

        Raises:
            ValueError: when a row's length is not that of ``columns``.
        """
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"every row of table {caption!r} must have {len(columns)} cells")
        cells = [[number(cell) for cell in row] for row in rows]
        return self._add(kind="table", columns=list(columns), rows=cells, caption=caption)

    def numbers(self, values: Mapping[str, Any], caption: str = "") -> Report:
        """Add a two-column table of named numbers."""
        return self.table(["", "value"], list(values.items()), caption)

    def html(self) -> str:
        """The page as text.

        Raises:
            UserError: when jinja2 is not installed.
        """
        try:
            from jinja2 import Environment
        except ImportError as error:
            raise UserError("reports need jinja2: pip install 'fmtt[evaluate]'") from error
        source = resources.files("fmtt.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
        template = Environment(autoescape=True).from_string(source)
        return template.render(title=self.title, intro=self.intro, sections=self.sections, footer=self.footer)

    def write(self, path: str | Path) -> Path:
        """Write the page, atomically, and return its path."""
        page = self.html()
        with atomic_write(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return Path(path)

    def _add(self, **block: Any) -> Report:
        if not self.sections:
            raise ValueError("open a section before adding to it")
        self.sections[-1]["blocks"].append(block)
        return self


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
