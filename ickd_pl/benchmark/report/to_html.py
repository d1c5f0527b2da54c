"""report.html: one self-contained file with charts, for light, dark and narrow screens."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ickd_pl.benchmark.published import row_name
from ickd_pl.benchmark.report.charts import MINUS, Bar, interval_chart
from ickd_pl.benchmark.report.curves import Line, labelled_chart, panels
from ickd_pl.benchmark.report.format import NOTHING, interval_text, signed
from ickd_pl.benchmark.report.notes import basis, facts, methods_text, notes, published_are
from ickd_pl.benchmark.report.results import Pair
from ickd_pl.benchmark.report.statistics import FEWEST_SEEDS
from ickd_pl.benchmark.report.summary import REFERENCES, Summary
from ickd_pl.benchmark.report.tables import (
    accuracy_table,
    curve_table,
    environment_table,
    pair_name,
    pair_table,
    paired_table,
    runs_table,
)


def html(summary: Summary) -> str:
    """The page. The template engine escapes all names; the charts escape theirs."""
    environment = Environment(
        loader=PackageLoader("ickd_pl.benchmark.report.write", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = _minus
    table = accuracy_table(summary)
    kinds = {kind for row in table.rows for cell in row for kind, _ in cell.beneath}
    return environment.get_template("page.html.jinja").render(
        name=summary.results.name,
        facts=facts(summary),
        notes=notes(summary),
        table=table,
        basis=basis(summary),
        published_are=published_are(summary),
        kinds=[kind for kind in ("best", "published") if kind in kinds],
        pairs=[_pair(summary, pair, number) for number, pair in enumerate(summary.results.pairs, 1)],
        runs=runs_table(summary),
        environment=environment_table(summary),
        methods=methods_text(summary),
        fewest=FEWEST_SEEDS,
    )


def _minus(text: str) -> str:
    """Replace the hyphen before a figure by a minus sign, which is as wide as a plus."""
    return text.replace("-", MINUS) if re.fullmatch(r"[-+.,\d\[\] ]*\d[\] ]*", text) else text


def _pair(summary: Summary, pair: Pair, number: int) -> dict[str, Any]:
    name, numbers = f"pair-{number}", {m: k for k, m in enumerate(summary.rows)}
    entries = [summary.entry(pair, m) for m in summary.rows]
    lines = [Line(row_name(e.method), e.curve, numbers[e.method]) for e in entries if e.curve]
    dotted = next((e.method for m in REFERENCES for e in entries if e.method == m and e.curve), None)
    last = max((line.last[0] for line in lines), default=0)
    late = last - last // 4
    title = f"accuracy of {pair_name(pair)} from epoch {late}"
    students = [line for line in lines if line.number] or lines  # a teacher far above them would press them together
    return {
        "id": name,
        "name": pair_name(pair),
        "table": pair_table(summary, pair),
        "paired": paired_table(summary, pair),
        "curves": curve_table(summary, pair),
        "panels": panels(lines, name, numbers[dotted] if dotted else None),
        "dotted": row_name(dotted) if dotted else "",
        "late": late,
        "chart": labelled_chart(students, title, late) if last > 1 else "",
        "intervals": [(f"Minus {row_name(r)}", chart) for r in REFERENCES if (chart := _intervals(summary, pair, r))],
    }


def _intervals(summary: Summary, pair: Pair, reference: str) -> Markup:
    bars = []
    for method in summary.results.methods:
        c = summary.entry(pair, method).against.get(reference)
        if c is not None:
            shown = c.both or c.images
            what = "images and seeds" if c.both else "images alone"
            interval = interval_text(shown) if shown else NOTHING
            note = f"{row_name(method)} minus {row_name(reference)}: {signed(c.difference)} {interval}, {what}"
            low, high = (shown.low, shown.high) if shown else (None, None)
            bars.append(Bar(row_name(method), c.difference, low, high, c.claim != 0, note))
    return interval_chart(bars, f"{pair_name(pair)}: differences to {row_name(reference)}")
