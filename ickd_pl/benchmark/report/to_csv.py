"""report.csv: one row per run, without means, for further analysis."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ickd_pl.benchmark.published import Published, row_name
from ickd_pl.benchmark.records import CellResult
from ickd_pl.benchmark.report.results import Run
from ickd_pl.benchmark.report.summary import REFERENCES, Summary
from ickd_pl.benchmark.report.tables import RUNS
from ickd_pl.plain import csv_text

# Not columns: what the other columns show, settings, and a path.
_LEFT_OUT = {"cell", "status", "reason", "config", "recipe", "versions", "weights", "measured", "pieces"}
_FIELDS = [field.name for field in fields(CellResult) if field.name not in _LEFT_OUT]
_VERSIONS = ("python", "torch", "pytorch_lightning", "ickd_pl")


def report_csv(summary: Summary) -> str:
    """One row per run, done or not; ``minus_kd`` and ``minus_vanilla`` compare runs of one seed."""
    rows = [_row(summary, run) for run in summary.results.runs]
    return csv_text([*rows[:1], *(map(_written, row.values()) for row in rows)])  # the first line: the names


def _row(summary: Summary, run: Run) -> dict[str, Any]:
    result, figure = run.result, _published(summary, run)
    further = {name for r in summary.results.runs if r.result is not None for name in r.result.measured}
    versions = {name.replace("-", "_"): version for name, version in (result.versions if result else {}).items()}
    return {
        "cell": run.folder.relative_to(summary.results.folder / "cells").as_posix(),
        "kind": "teacher" if run.pair is None else "student",
        "pair": run.pair,
        "teacher": run.teacher,
        "student": run.student,
        "method": run.method,
        "row": row_name(run.method),
        "seed": run.seed,
        "state": run.state,
        "planned": run.planned,
        "reason": run.reason,
        **{name: getattr(result, name, None) for name in _FIELDS},
        **{column.name: _rounded(column.take(run), 6) for column in RUNS if column.name},
        **{f"minus_{reference}": _minus(summary, run, reference) for reference in REFERENCES},
        **{f"measured_{name}": result.measured.get(name) if result else None for name in sorted(further)},
        **{name: versions.get(name) for name in _VERSIONS},
        "published": getattr(figure, "top1", None),
        "published_source": getattr(figure, "source", None),
        "published_epoch": getattr(figure, "epoch", None),
    }


def _written(value: Any) -> Any:
    if isinstance(value, list):
        value = " ".join(value)
    elif isinstance(value, dict):  # the chosen arguments
        value = str(value.get("arguments"))
    return value


def _rounded(value: Any, digits: int) -> Any:
    return round(value, digits) if isinstance(value, float) else value


def _minus(summary: Summary, run: Run, reference: str) -> float | None:
    """Difference in accuracy to a method's run of the same pair and seed."""
    if run.pair is None or run.method == reference or not run.planned or run.done is None:
        return None
    other = next((r.done for r in summary.results.of(run.pair, reference) if r.seed == run.seed), None)
    if other is None or other.acc1_last is None or run.done.acc1_last is None:
        return None
    return round(run.done.acc1_last - other.acc1_last, 4)


def _published(summary: Summary, run: Run) -> Published | None:
    if run.pair is not None:
        entry = summary.entries.get((run.pair, run.method))
        return entry.published if entry is not None else None
    own = [p for p in summary.results.pairs if p.teacher == run.teacher]
    return summary.entry(own[0], None).published if own else None
