"""The report of a results folder, complete or not: report.md, report.csv, report.tex and report.html."""

from __future__ import annotations

from pathlib import Path

from ickd_pl.benchmark.report.notes import facts, notes
from ickd_pl.benchmark.report.results import read_results
from ickd_pl.benchmark.report.summary import summarise
from ickd_pl.benchmark.report.tables import accuracy_table
from ickd_pl.benchmark.report.to_csv import report_csv
from ickd_pl.benchmark.report.to_html import html
from ickd_pl.benchmark.report.to_latex import latex
from ickd_pl.benchmark.report.to_markdown import LEGEND, markdown, md_table
from ickd_pl.errors import printable
from ickd_pl.files import write_text


def write_report(folder: Path) -> list[Path]:
    """Write the four files of the report into a results folder, each atomically.

    They depend only on the files in the folder: the same results give the same bytes.

    Args:
        folder: results folder with benchmark.yaml and cells/.

    Returns:
        The files.

    Raises:
        UserError: the folder is not a results folder, a result is damaged, or the folder cannot be written.
    """
    summary = summarise(read_results(folder))
    texts = {"md": markdown(summary), "csv": report_csv(summary), "tex": latex(summary), "html": html(summary)}
    paths = [folder / f"report.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, printable(text, lines=True))
    return paths


def summary_table(folder: Path) -> str:
    """Facts, the table of last-epoch accuracies and the notes, as text.

    Raises:
        UserError: as :func:`write_report`.
    """
    summary = summarise(read_results(folder))
    lines = [", ".join(f"{k}: {v}" for k, v in facts(summary)), "", md_table(accuracy_table(summary)), LEGEND]
    return "\n".join([*lines, *(f"- {text}" for text in notes(summary))])
