"""report.csv: one row a run, for other tools; no means, which they make themselves."""

from __future__ import annotations

import csv
import io

from ickd_pl.benchmark.published import Published, row_name
from ickd_pl.benchmark.report.results import Run
from ickd_pl.benchmark.report.summary import REFERENCES, Summary

COLUMNS = (
    "cell",
    "kind",
    "pair",
    "teacher",
    "student",
    "method",
    "row",
    "seed",
    "state",
    "planned",
    "reason",
    "data",
    "split",
    "num_test",
    "acc1_last",
    "acc1_best",
    "best_epoch",
    "acc5_last",
    "train_acc1_last",
    "minus_kd",
    "minus_vanilla",
    "epochs",
    "parameters",
    "seconds",
    "hours",
    "images_per_second",
    "packed_with",
    "device",
    "precision",
    "python",
    "torch",
    "pytorch_lightning",
    "ickd_pl",
    "code_hash",
    "data_hash",
    "teacher_hash",
    "accepted_code",
    "chosen_on_validation",
    "published",
    "published_source",
    "published_epoch",
)


def csv_text(summary: Summary) -> str:
    """One row a run, done or not; ``minus_kd``, ``minus_vanilla``: to that method's run of the same seed."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    accuracy = {
        (r.pair, r.method, r.seed): r.result.acc1_last
        for r in summary.results.runs
        if r.state == "done" and r.planned and r.result is not None and r.result.acc1_last is not None
    }
    for run in summary.results.runs:
        writer.writerow({k: v for k, v in _csv_row(summary, run, accuracy).items() if v is not None})
    return out.getvalue()


def _csv_row(
    summary: Summary, run: Run, accuracy: dict[tuple[str | None, str | None, int | None], float]
) -> dict[str, object]:
    row: dict[str, object] = {
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
        "reason": run.reason or None,
    }
    cell = run.result
    if cell is not None:
        row |= {name: getattr(cell, name) for name in COLUMNS if hasattr(cell, name) and name not in row}
        row["packed_with"] = " ".join(cell.packed_with)
        row["hours"] = None if cell.seconds is None else round(cell.seconds / 3600, 6)
        row |= {name: cell.versions.get(name) for name in ("python", "torch", "pytorch_lightning", "ickd_pl")}
        chosen = cell.chosen_on_validation
        row["chosen_on_validation"] = None if chosen is None else str(chosen.get("arguments"))
    mine = accuracy.get((run.pair, run.method, run.seed))
    for reference in REFERENCES:
        theirs = accuracy.get((run.pair, reference, run.seed))
        if run.pair is not None and mine is not None and theirs is not None and run.method != reference:
            row[f"minus_{reference}"] = round(mine - theirs, 4)
    if (figure := _published(summary, run)) is not None:
        row |= {"published": figure.top1, "published_source": figure.source, "published_epoch": figure.epoch}
    return row


def _published(summary: Summary, run: Run) -> Published | None:
    if run.pair is not None:
        entry = summary.entries.get((run.pair, run.method))
        return entry.published if entry is not None else None
    own = [p for p in summary.results.pairs if p.teacher == run.teacher]
    return summary.entry(own[0], None).published if own else None
