"""The report of a results folder: it reads the records of a benchmark, and writes tables and charts."""

from __future__ import annotations

from ickd_pl.benchmark.report.write import summary_table, write_report

__all__ = ["summary_table", "write_report"]
