"""The report's tables as text: what markdown, LaTeX and the page all show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ickd_pl.benchmark.published import network_name, row_name
from ickd_pl.benchmark.records import CellResult
from ickd_pl.benchmark.report.results import Pair, Run
from ickd_pl.benchmark.report.statistics import Comparison, Interval, Mean
from ickd_pl.benchmark.report.summary import REFERENCES, Entry, Summary

NOTHING = "-"
# How the state of a run that is not done is shown in a table of means.
STATES = {"missing": "missing", "unfinished": "unfinished", "failed": "failed", "refused": "n/a"}
CLAIMS = {1: "above", -1: "below", 0: "none"}


@dataclass(frozen=True)
class Cell:
    """A cell's text, and for whoever can show it: a lesser line beneath it, and what kind of cell it is."""

    text: str
    beneath: tuple[tuple[str, str], ...] = ()  # (kind, text)
    kind: str = ""  # best, or the state of a run that is not done
    claim: int = 0  # against KD


@dataclass(frozen=True)
class Table:
    """Rows below a header; the first column is text, the others are figures unless ``words`` names them."""

    header: list[str]
    rows: list[list[Cell]]
    words: frozenset[str] = frozenset()

    def is_text(self, column: int) -> bool:
        return column == 0 or self.header[column] in self.words


def pair_name(pair: Pair) -> str:
    """``ResNet56 / ResNet20``: teacher, then student."""
    return f"{network_name(pair.teacher)} / {network_name(pair.student)}"


def mean_text(mean: Mean | None) -> str:
    """``71.32 ± 0.12``, the sample standard deviation over seeds; one seed has none."""
    if mean is None:
        return NOTHING
    return f"{mean.mean:.2f}" if mean.sd is None else f"{mean.mean:.2f} ± {mean.sd:.2f}"


def signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}"


def interval_text(interval: Interval | None) -> str:
    return NOTHING if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def published_text(entry: Entry) -> str:
    """The published figure; a dagger where its epoch is not stated."""
    if entry.published is None:
        return NOTHING
    return f"{entry.published.top1:.2f}{'†' if entry.published.epoch == 'unstated' else ''}"


def state_text(entry: Entry) -> str:
    """Why there is no mean: ``missing``, or ``1 failed, 2 missing``."""
    states = entry.states
    if not states:
        return NOTHING
    if len(states) == 1:
        return STATES.get(next(iter(states)), NOTHING)
    return ", ".join(f"{count} {STATES.get(state, state)}" for state, count in states.items())


def accuracy_cell(summary: Summary, entry: Entry) -> Cell:
    """The last epoch's accuracy; beneath it the best epoch's and the published figure."""
    beneath = []
    if entry.best is not None:
        beneath.append(("best", f"best {mean_text(entry.best)}"))
    if entry.published is not None:
        difference = "" if entry.to_published is None else f" ({signed(entry.to_published)})"
        beneath.append(("published", f"published {published_text(entry)}{difference}"))
    if entry.last is None:
        kind = next(iter(entry.states), "missing")
        return Cell(state_text(entry), tuple(beneath), kind)
    done, planned = len(entry.done), len(entry.runs)
    part = f" ({done}/{planned})" if done < planned else ""
    claim = entry.against["kd"].claim if "kd" in entry.against else 0
    kind = "leader" if entry.method is not None and summary.best.get(entry.pair.name) == entry.method else ""
    return Cell(mean_text(entry.last) + part, tuple(beneath), kind, claim)


def matrix(summary: Summary, fill: Callable[[Entry], Cell]) -> Table:
    """Rows and columns of the published table: methods x pairs, the teachers first."""
    pairs = summary.results.pairs
    rows = [[Cell(row_name(m)), *(fill(summary.entry(p, m)) for p in pairs)] for m in summary.rows]
    return Table(["Method", *map(pair_name, pairs)], rows)


def accuracy_table(summary: Summary) -> Table:
    return matrix(summary, lambda entry: accuracy_cell(summary, entry))


def best_table(summary: Summary) -> Table:
    return matrix(summary, lambda e: Cell(mean_text(e.best) if e.best else state_text(e)))


def published_table(summary: Summary) -> Table | None:
    """Published figures and the differences to them; None where there is none to show."""
    if not any(e.published for e in summary.entries.values()):
        return None

    def fill(entry: Entry) -> Cell:
        if entry.published is None:
            return Cell(NOTHING)
        difference = f" ({signed(entry.to_published)})" if entry.to_published is not None else ""
        return Cell(published_text(entry) + difference)

    return matrix(summary, fill)


def pair_table(summary: Summary, pair: Pair) -> Table:
    """Accuracy and cost of every method on one pair."""
    known = any(summary.entry(pair, m).published for m in summary.rows)
    header = ["Method", "Seeds", "Last epoch", "Best epoch", *(["Published", "Difference"] if known else [])]
    header += ["Hours", "Images/s", "Run as"]
    rows = []
    for method in summary.rows:
        e = summary.entry(pair, method)
        last = Cell(mean_text(e.last)) if e.last else Cell(state_text(e), kind=next(iter(e.states), "missing"))
        rows.append(
            [
                Cell(row_name(method)),
                Cell(f"{len(e.done)}/{len(e.runs)}"),
                last,
                Cell(mean_text(e.best)),
                *([Cell(published_text(e)), Cell(signed(e.to_published))] if known else []),
                Cell(NOTHING if e.hours is None else hours_text(e.hours)),
                Cell(NOTHING if e.speed is None else f"{e.speed:,.0f}"),
                Cell(", ".join(dict.fromkeys(run_as(c) for c in e.done)) or NOTHING),
            ]
        )
    return Table(header, rows, frozenset({"Run as"}))


def hours_text(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"


def run_as(cell: CellResult) -> str:
    return f"packed ({len(cell.packed_with) + 1})" if cell.packed_with else "solo"


def paired_table(summary: Summary, pair: Pair) -> Table | None:
    """Differences on the same images and seeds; None where there is nothing to compare."""
    header = ["Method", "Minus", "Seeds", "Difference", "Images", "Seeds (t)", "Images and seeds", "Claim"]
    rows = []
    for reference in REFERENCES:
        for method in summary.results.methods:
            comparison = summary.entry(pair, method).against.get(reference)
            if comparison is not None:
                rows.append([Cell(row_name(method)), Cell(row_name(reference)), *_compared(comparison)])
    return Table(header, rows, frozenset({"Minus", "Claim"})) if rows else None


def _compared(c: Comparison) -> list[Cell]:
    claim = "too few seeds" if c.seeds is None else CLAIMS[c.claim]
    return [
        Cell(str(len(c.per_seed))),
        Cell(signed(c.difference)),
        Cell(interval_text(c.images)),
        Cell(interval_text(c.seeds)),
        Cell(interval_text(c.both)),
        Cell(claim, claim=c.claim),
    ]


def curve_table(summary: Summary, pair: Pair) -> Table | None:
    """Learning curves at a few epochs; None without curves."""
    entries = [summary.entry(pair, m) for m in summary.rows]
    epochs = sorted({epoch for e in entries for epoch in e.curve})
    if not epochs:
        return None
    shown = sorted({epochs[min(len(epochs) - 1, round(len(epochs) * k / 6) - 1)] for k in range(1, 7)} & set(epochs))
    rows = [
        [Cell(row_name(e.method)), *(Cell(f"{e.curve[n]:.2f}" if n in e.curve else NOTHING) for n in shown)]
        for e in entries
        if e.curve
    ]
    return Table(["Method", *(f"epoch {n}" for n in shown)], rows)


def runs_table(summary: Summary) -> Table:
    """Every run, and every run that should be there."""
    header = ["Cell", "Seed", "State", "Last", "Best", "At epoch", "Top-5", "Train", "Hours", "Images/s", "Run as"]
    header += ["Device", "Why"]
    rows = [_run_row(run) for run in summary.results.runs]
    return Table(header, rows, frozenset({"State", "Run as", "Device", "Why"}))


def _run_row(run: Run) -> list[Cell]:
    c = run.result
    name = f"{run.teacher}, teacher" if run.pair is None else f"{run.pair}, {row_name(run.method)}"
    marks = run.reason + ("; other code, accepted" if c is not None and c.accepted_code else "")
    start = [
        Cell(name),
        Cell(NOTHING if run.seed is None else str(run.seed)),
        Cell(run.state, kind="" if run.state == "done" else run.state),
    ]
    if c is None:
        return [*start, *[Cell(NOTHING)] * 9, Cell(marks)]
    figures = [_two(c.acc1_last), _two(c.acc1_best), NOTHING if c.best_epoch is None else str(c.best_epoch)]
    figures += [_two(c.acc5_last), _two(c.train_acc1_last)]
    figures += [NOTHING if c.seconds is None else hours_text(c.seconds / 3600)]
    figures += [NOTHING if c.images_per_second is None else f"{c.images_per_second:,.0f}"]
    return [*start, *map(Cell, figures), Cell(run_as(c)), Cell(c.device or NOTHING), Cell(marks.lstrip("; "))]


def _two(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def environment_table(summary: Summary) -> Table | None:
    """Versions, hashes and machines, and how many runs have each; None before anything is done."""
    cells = [r.result for r in summary.results.runs if r.result is not None]
    if not cells:
        return None
    kinds: dict[str, Iterable[str | None]] = {
        "device": [c.device for c in cells],
        "precision": [c.precision for c in cells],
        "package files (hash)": [c.code_hash for c in cells],
        "data (hash)": [c.data_hash for c in cells],
    }
    for name in dict.fromkeys(n for c in cells for n in c.versions):
        kinds[name] = [None if c.versions.get(name) is None else str(c.versions[name]) for c in cells]
    for network in dict.fromkeys(p.teacher for p in summary.results.pairs):
        students = [r.result for r in summary.results.runs if r.teacher == network and r.pair is not None and r.result]
        kinds[f"teacher {network} (hash)"] = [c.teacher_hash for c in students if c.teacher_hash]
    rows = []
    for kind, values in kinds.items():
        seen = list(values)
        for value in dict.fromkeys(seen):
            rows.append([Cell(kind), Cell(_short(kind, value)), Cell(str(seen.count(value)))])
    return Table(["What", "Value", "Runs"], rows, frozenset({"Value"}))


def _short(kind: str, value: str | None) -> str:
    """The first digits of a hash, as version control shows them; report.csv has them whole."""
    if value is None:
        return "not recorded"
    return value[:12] if kind.endswith("(hash)") else value
