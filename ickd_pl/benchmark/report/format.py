"""Tables as rows of cells, built from columns that are described once, and the format of figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from ickd_pl.benchmark.report.statistics import Interval, Mean

NOTHING = "-"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Cell:
    """A cell's text, and what a format may show beside it."""

    text: str
    beneath: tuple[tuple[str, str], ...] = ()  # optional second lines: (kind, text)
    kind: str = ""  # leader, or the state of a run that is not done
    claim: int = 0  # 1 or -1: above or below KD, claimed


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table, for all formats.

    Attributes:
        title: the heading.
        take: returns the value for a row: a number, a string, a :class:`Cell`, or None for an empty cell.
        show: formats the value, unless it is a :class:`Cell`.
        text: align to the left, as the first column always is.
        name: column name in report.csv, for values derived from the record; its fields are columns anyway.
    """

    title: str
    take: Callable[[Row], Any]
    show: Callable[[Any], str] = str
    text: bool = False
    name: str = ""

    def cell(self, row: Row) -> Cell:
        value = self.take(row)
        if isinstance(value, Cell):
            return value
        return Cell(NOTHING if value is None else self.show(value))


class Markup(NamedTuple):
    """The markup of a format."""

    escape: Callable[[str], str]
    bold: str
    above: str
    below: str

    def cell(self, cell: Cell) -> str:
        text = self.escape(cell.text)
        text = self.bold % text if cell.kind == "leader" else text
        return text + ("", self.above, self.below)[cell.claim]


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header."""

    header: list[str]
    rows: list[list[Cell]]
    text: list[bool]  # per column: aligned to the left

    @classmethod
    def of(cls, columns: Sequence[Column[Row]], rows: Iterable[Row]) -> Table:
        """A table with one row of cells per item."""
        text = [column.text or number == 0 for number, column in enumerate(columns)]
        return cls([c.title for c in columns], [[c.cell(row) for c in columns] for row in rows], text)

    def written(self, markup: Markup) -> list[list[str]]:
        """The header and the rows."""
        return [[markup.escape(title) for title in self.header], *([markup.cell(c) for c in row] for row in self.rows)]


two = "{:.2f}".format
signed = "{:+.2f}".format
count = "{:,.0f}".format


def mean_text(mean: Mean) -> str:
    """``71.32 ± 0.12``: mean and sample standard deviation over seeds; one seed has no deviation."""
    return two(mean.mean) if mean.sd is None else f"{mean.mean:.2f} ± {mean.sd:.2f}"


def interval_text(interval: Interval) -> str:
    return f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def hours_text(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"
