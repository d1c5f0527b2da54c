"""report.md."""

from __future__ import annotations

import re

from ickd_pl.benchmark.report.format import Markup, Table
from ickd_pl.benchmark.report.notes import basis, facts, methods_text, notes, published_are
from ickd_pl.benchmark.report.summary import Summary
from ickd_pl.benchmark.report.tables import (
    accuracy_table,
    best_table,
    curve_table,
    environment_table,
    pair_name,
    pair_table,
    paired_table,
    published_table,
    runs_table,
)

LEGEND = "↑ and ↓: above and below KD, claimed; bold: the best of its column, its lead over the second claimed"


def markdown(summary: Summary) -> str:
    """The whole report; readable in a terminal."""
    parts = [f"# {_md(summary.results.name)}: results", ", ".join(f"{k}: {_md(v)}" for k, v in facts(summary))]
    if remarks := notes(summary):
        parts += ["**Before reading the figures**", "\n".join(f"- {_md(text)}" for text in remarks)]
    parts += ["## Accuracy after the last epoch", md_table(accuracy_table(summary)), f"{LEGEND}. {basis(summary)}."]
    parts += [
        "## Best epoch",
        "For information only: selected on the split it is measured on.",
        md_table(best_table(summary)),
    ]
    if (table := published_table(summary)) is not None:
        compared = "" if summary.not_compared else ", and the difference to them"
        parts += [f"## Published figures{compared}", md_table(table)]
        parts += [f"{published_are(summary)} †: the epoch is not stated."]
    for pair in summary.results.pairs:
        parts += [f"## {_md(pair_name(pair))}", md_table(pair_table(summary, pair))]
        if (table := paired_table(summary, pair)) is not None:
            parts += ["Paired differences with intervals of 95 %:", md_table(table)]
        if (table := curve_table(summary, pair)) is not None:
            parts += ["Learning curves, accuracy after each epoch, mean over seeds:", md_table(table)]
    parts += ["## Every run", md_table(runs_table(summary))]
    if (table := environment_table(summary)) is not None:
        parts += ["## Versions and hashes", md_table(table)]
    parts += ["## How the figures were computed", *methods_text(summary)]
    parts += [
        "`report.csv` has one row a run, done or not, and no means; `report.tex` has the tables above; `report.html` "
        "is this report with its charts."
    ]
    return "\n\n".join(parts) + "\n"


def md_table(table: Table) -> str:
    """A Markdown table, with columns aligned in the source."""
    lines = table.written(_MARKUP)
    widths = [max(3, *(len(line[k]) for line in lines)) for k in range(len(table.header))]
    if table.text[-1]:
        widths[-1] = 3  # the last column needs no padding
    columns = list(zip(widths, table.text, strict=True))
    rule = ["-" * w if text else "-" * (w - 1) + ":" for w, text in columns]
    row = " | ".join(f"{{:{'<' if text else '>'}{w}}}" for w, text in columns)
    return "\n".join(f"| {row.format(*line)} |" for line in [lines[0], rule, *lines[1:]])


def _md(text: str) -> str:
    """Escape what would end a cell or become markup; underscores within a word are safe."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`|*]|\](?=[(\[])|^[#>+-](?=\s))", r"\\\1", text)


_MARKUP = Markup(_md, "**%s**", " ↑", " ↓")
