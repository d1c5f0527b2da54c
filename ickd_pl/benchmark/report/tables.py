"""The tables shown in Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from ickd_pl.benchmark.published import EPOCHS, network_name, row_name
from ickd_pl.benchmark.records import CellResult
from ickd_pl.benchmark.report.format import (
    NOTHING,
    Cell,
    Column,
    Table,
    count,
    hours_text,
    interval_text,
    mean_text,
    signed,
    two,
)
from ickd_pl.benchmark.report.results import Pair, Run
from ickd_pl.benchmark.report.statistics import Comparison
from ickd_pl.benchmark.report.summary import REFERENCES, Entry, Summary

# Text for a run that is not done, in a table of means.
STATES = {"missing": "missing", "unfinished": "unfinished", "failed": "failed", "refused": "n/a"}
CLAIMS = {1: "above", -1: "below", 0: "none"}


def pair_name(pair: Pair) -> str:
    """Teacher and student, such as ``ResNet56 / ResNet20``."""
    return f"{network_name(pair.teacher)} / {network_name(pair.student)}"


def published_text(entry: Entry) -> str | None:
    """The published figure, with a dagger if its epoch is not stated."""
    if entry.published is None:
        return None
    return f"{entry.published.top1:.2f}{'†' if entry.published.epoch == 'unstated' else ''}"


def compared_text(entry: Entry) -> str | None:
    """The published figure, with the difference to it in brackets if there is one."""
    difference = "" if entry.to_published is None else f" ({signed(entry.to_published)})"
    return None if entry.published is None else f"{published_text(entry)}{difference}"


def state_text(entry: Entry) -> str:
    """Why there is no mean, such as ``missing`` or ``1 failed, 2 missing``."""
    states = entry.states
    if len(states) == 1:
        return STATES.get(next(iter(states)), NOTHING)
    return ", ".join(f"{number} {STATES.get(state, state)}" for state, number in states.items()) or NOTHING


# -- methods x pairs ---------------------------------------------------------------------------------------------------


def matrix(summary: Summary, take: Callable[[Entry], Any]) -> Table:
    """Methods x pairs, as in the published table, with the teachers first."""

    def column(pair: Pair) -> Column[str | None]:
        return Column(pair_name(pair), lambda method: take(summary.entry(pair, method)))

    return Table.of([Column("Method", row_name), *map(column, summary.results.pairs)], summary.rows)


def accuracy_table(summary: Summary) -> Table:
    """Accuracy after the last epoch, with the best epoch and the published figure beneath."""

    def cell(entry: Entry) -> Cell:
        best = f"best {mean_text(entry.best)}" if entry.best else None
        length = "" if summary.not_compared is None else f" ({EPOCHS} epochs)"
        published = f"published {compared_text(entry)}{length}" if entry.published else None
        beneath = tuple((kind, text) for kind, text in (("best", best), ("published", published)) if text)
        if entry.last is None:
            return Cell(state_text(entry), beneath, next(iter(entry.states), "missing"))
        part = f" ({len(entry.done)}/{len(entry.runs)})" if len(entry.done) < len(entry.runs) else ""
        leads = entry.method is not None and summary.best.get(entry.pair.name) == entry.method
        claim = entry.against["kd"].claim if "kd" in entry.against else 0
        return Cell(mean_text(entry.last) + part, beneath, "leader" if leads else "", claim)

    return matrix(summary, cell)


def best_table(summary: Summary) -> Table:
    return matrix(summary, lambda e: mean_text(e.best) if e.best else state_text(e))


def published_table(summary: Summary) -> Table | None:
    """Published figures and the differences to them; None if there are none."""
    return matrix(summary, compared_text) if any(e.published for e in summary.entries.values()) else None


# -- one pair ----------------------------------------------------------------------------------------------------------


def _last(entry: Entry) -> Cell:
    if entry.last is not None:
        return Cell(mean_text(entry.last))
    return Cell(state_text(entry), kind=next(iter(entry.states), "missing"))


def run_as(result: CellResult) -> str:
    return f"packed ({len(result.packed_with) + 1})" if result.packed_with else "solo"


ACCURACY: list[Column[Entry]] = [
    Column("Method", lambda e: row_name(e.method)),
    Column("Seeds", lambda e: f"{len(e.done)}/{len(e.runs)}"),
    Column("Last epoch", _last),
    Column("Best epoch", lambda e: e.best, mean_text),
]
PUBLISHED: Column[Entry] = Column("Published", published_text)
TO_PUBLISHED: Column[Entry] = Column("Difference", lambda e: e.to_published, signed)
COST: list[Column[Entry]] = [
    Column("Hours", lambda e: e.hours, hours_text),
    Column("Images/s", lambda e: e.speed, count),
    Column("Run as", lambda e: ", ".join(dict.fromkeys(map(run_as, e.done))) or None, text=True),
]


def pair_table(summary: Summary, pair: Pair) -> Table:
    """Accuracy and cost of every method on one pair."""
    entries = [summary.entry(pair, method) for method in summary.rows]
    # What is not compared stands beside ours with its own length, and no difference.
    title = f"Published ({EPOCHS} epochs{', another teacher' if summary.other_teachers else ''})"
    beside = PUBLISHED if summary.not_compared is None else replace(PUBLISHED, title=title)
    published = [beside] if any(e.published for e in entries) else []
    published += [TO_PUBLISHED] if any(e.to_published is not None for e in entries) else []
    return Table.of([*ACCURACY, *published, *COST], entries)


class _Compared(NamedTuple):
    method: str
    reference: str
    comparison: Comparison


PAIRED: list[Column[_Compared]] = [
    Column("Method", lambda c: row_name(c.method)),
    Column("Minus", lambda c: row_name(c.reference), text=True),
    Column("Seeds", lambda c: len(c.comparison.per_seed)),
    Column("Difference", lambda c: c.comparison.difference, signed),
    Column("Images", lambda c: c.comparison.images, interval_text),
    Column("Seeds (t)", lambda c: c.comparison.seeds, interval_text),
    Column("Images and seeds", lambda c: c.comparison.both, interval_text),
    Column("Claim", lambda c: "too few seeds" if c.comparison.seeds is None else CLAIMS[c.comparison.claim], text=True),
]


def paired_table(summary: Summary, pair: Pair) -> Table | None:
    """Differences on the same images and seeds; None where there is nothing to compare."""
    compared = [
        _Compared(method, reference, comparison)
        for reference in REFERENCES
        for method in summary.results.methods
        if (comparison := summary.entry(pair, method).against.get(reference)) is not None
    ]
    return Table.of(PAIRED, compared) if compared else None


def curve_table(summary: Summary, pair: Pair) -> Table | None:
    """Learning curves at up to six epochs; None without curves."""
    entries = [e for m in summary.rows if (e := summary.entry(pair, m)).curve]
    epochs = sorted({epoch for e in entries for epoch in e.curve})
    if not epochs:
        return None

    def column(epoch: int) -> Column[Entry]:
        return Column(f"epoch {epoch}", lambda e: e.curve.get(epoch), two)

    shown = sorted({epochs[max(0, round(len(epochs) * k / 6) - 1)] for k in range(1, 7)})
    return Table.of([ACCURACY[0], *map(column, shown)], entries)


# -- every run ---------------------------------------------------------------------------------------------------------


def _of_result(take: Callable[[CellResult], Any]) -> Callable[[Run], Any]:
    return lambda run: None if run.result is None else take(run.result)


def _why(run: Run) -> str:
    accepted = "other code, accepted" if run.result is not None and run.result.accepted_code else ""
    return "; ".join(filter(None, (run.reason, accepted)))


RUNS: list[Column[Run]] = [
    Column("Cell", lambda r: f"{r.teacher}, teacher" if r.pair is None else f"{r.pair}, {row_name(r.method)}"),
    Column("Seed", lambda r: r.seed),
    Column("State", lambda r: Cell(r.state, kind="" if r.state == "done" else r.state), text=True),
    Column("Last", _of_result(lambda c: c.acc1_last), two),
    Column("Best", _of_result(lambda c: c.acc1_best), two),
    Column("At epoch", _of_result(lambda c: c.best_epoch)),
    Column("Top-5", _of_result(lambda c: c.acc5_last), two),
    Column("Train", _of_result(lambda c: c.train_acc1_last), two),
    Column("Hours", _of_result(lambda c: c.hours), hours_text, name="hours"),
    Column("Images/s", _of_result(lambda c: c.images_per_second), count),
    Column("Run as", _of_result(run_as), text=True),
    Column("Device", _of_result(lambda c: c.device or None), text=True),
    Column("Why", _why, text=True),
]


def runs_table(summary: Summary) -> Table:
    """Every run, and every run that should be there."""
    return Table.of(RUNS, summary.results.runs)


ENVIRONMENT: list[Column[tuple[str, str | None, int]]] = [
    Column("What", lambda row: row[0]),
    Column("Value", lambda row: _short(row[0], row[1]), text=True),
    Column("Runs", lambda row: row[2]),
]


def environment_table(summary: Summary) -> Table | None:
    """Versions, hashes and machines, and how many runs have each; None before anything is done."""
    traits = summary.results.traits(summary.results.runs)
    rows = [(trait.title, value, runs) for trait in traits for value, runs in Counter(trait.values).items()]
    return Table.of(ENVIRONMENT, rows) if rows else None


def _short(title: str, value: str | None) -> str:
    """The first digits of a hash, as version control shows them; report.csv has them whole."""
    if value is None:
        return "not recorded"
    return value[:12] if title.endswith("(hash)") else value
