"""The figures of a report: one entry per method and pair, without text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ickd_pl.benchmark.published import DATA, EPOCHS, NUM_TEST, Published, published
from ickd_pl.benchmark.records import LARGEST, CellResult
from ickd_pl.benchmark.report.results import Pair, Results, Run, predictions
from ickd_pl.benchmark.report.statistics import Comparison, Mean, compare, mean_of
from ickd_pl.runs.metrics_file import readable_rows

REFERENCES = ("kd", "vanilla")


@dataclass(frozen=True)
class Entry:
    """One method on one pair, over its seeds. ``method`` None is the teacher."""

    pair: Pair
    method: str | None
    runs: list[Run]
    last: Mean | None
    best: Mean | None
    published: Published | None
    to_published: float | None
    against: dict[str, Comparison]  # by reference method; missing where no comparison is possible
    curve: dict[int, float]  # epoch: accuracy, mean over the finished seeds

    @property
    def done(self) -> list[CellResult]:
        return [r.done for r in self.runs if r.done is not None]

    @property
    def states(self) -> dict[str, int]:
        """Number of runs in each state."""
        return dict(Counter(r.state for r in self.runs))

    @property
    def hours(self) -> float | None:
        """Mean hours of a run."""
        mean = mean_of(c.hours for c in self.done)
        return mean.mean if mean else None

    @property
    def speed(self) -> float | None:
        """Mean images per second of a run."""
        mean = mean_of(c.images_per_second for c in self.done)
        return mean.mean if mean else None

    def measured(self, name: str) -> float | None:
        """Mean of a figure that only some results may have, see :class:`CellResult`."""
        mean = mean_of(c.measured.get(name) for c in self.done)
        return mean.mean if mean else None


@dataclass(frozen=True)
class Summary:
    """All figures of a results folder."""

    results: Results
    entries: dict[tuple[str, str | None], Entry]  # by pair's name and method
    best: dict[str, str]  # pair: the best method, if its lead over the second is significant
    not_compared: str | None  # why the published figures cannot be compared with these
    oddities: list[str]  # problems of the stored predictions
    other_teachers: bool  # some teacher may be another than the published one

    @property
    def rows(self) -> list[str | None]:
        return [None, *self.results.methods]

    def entry(self, pair: Pair, method: str | None) -> Entry:
        return self.entries[pair.name, method]

    @property
    def comparisons(self) -> list[Comparison]:
        return [c for e in self.entries.values() for c in e.against.values()]


def summarise(results: Results) -> Summary:
    """Compute every figure of the report. The whole table with five seeds and 10,000 images takes a few seconds."""
    why = why_not_compared(results)
    reader = _Predictions()
    entries: dict[tuple[str, str | None], Entry] = {}
    best: dict[str, str] = {}
    for pair in results.pairs:
        entries[pair.name, None] = _entry(results, pair, None, {}, why)
        runs = {method: results.of(pair.name, method) for method in results.methods}
        for method in results.methods:
            against = {
                reference: comparison
                for reference in REFERENCES
                if reference in runs and reference != method
                if (comparison := _compare(reader, pair, method, runs[method], reference, runs[reference]))
            }
            entries[pair.name, method] = _entry(results, pair, method, against, why)
        if leader := _leader(reader, pair, {m: entries[pair.name, m] for m in results.methods}):
            best[pair.name] = leader
        reader.forget()
    return Summary(results, entries, best, why, reader.oddities, _other_teachers(results))


def why_not_compared(results: Results) -> str | None:
    """Why the published figures cannot be compared with these results; None if they can."""
    if results.data != DATA:
        return f"the published figures are for {DATA}, these for {results.data or 'unknown data'}"
    if any(c.split != "test" for c in results.done):
        return "the published figures are for the test images, these for a validation split"
    parts = [results.setting("data", "init_args", key) for key in ("train_size", "val_size")]
    if any(parts) or results.setting("trainer", "limit_train_batches") not in (None, 1.0):
        return "the published students were trained on all 50,000 training images, these on a part of them"
    if any(c.num_test != NUM_TEST for c in results.done):
        return f"the published figures are for {NUM_TEST:,} test images, these for {results.done[0].num_test}"
    students = (c.epochs for c in results.done if c.cell.kind == "student")
    fewest = min((epochs for epochs in students if epochs is not None), default=results.epochs or 0)
    if fewest < EPOCHS:
        return f"the published students were trained for {EPOCHS} epochs, these for {fewest}"
    return None


def _other_teachers(results: Results) -> bool:
    """Whether some teacher is not, or may not be, the published one: a file of the user's, or trained here."""
    fetched = results.setting("teachers", "get") in (None, "fetch", "fetch_or_train")
    trained = [run.done for pair in results.pairs for run in results.teachers(pair.teacher) if run.done]
    return not fetched or bool(results.setting("teachers", "weights")) or any(result.epochs for result in trained)


def _entry(results: Results, pair: Pair, method: str | None, against: dict[str, Comparison], why: str | None) -> Entry:
    runs = results.teachers(pair.teacher) if method is None else results.of(pair.name, method)
    done = [r.done for r in runs if r.done is not None]
    last, best = mean_of(c.acc1_last for c in done), mean_of(c.acc1_best for c in done)
    figure = published(method, pair.teacher, pair.student) if results.data == DATA else None
    to_published = last.mean - figure.top1 if last and figure and why is None else None
    curve = mean_curve([r.folder for r in runs if r.done])
    return Entry(pair, method, runs, last, best, figure, to_published, against, curve)


class _Predictions:
    """Reads the predictions of each run once per pair, and collects problems with them."""

    def __init__(self) -> None:
        self._correct: dict[Path, npt.NDArray[np.bool_] | None] = {}
        self._labels: dict[int, npt.NDArray[Any]] = {}
        self.oddities: list[str] = []

    def correct(self, runs: Sequence[Run]) -> npt.NDArray[np.bool_] | None:
        """Which test images each run classified correctly, (S, N); None unless known for all runs."""
        rows = []
        for run in runs:
            if run.folder not in self._correct:
                self._correct[run.folder] = self._checked(run)
            rows.append(self._correct[run.folder])
        known = [row for row in rows if row is not None]
        return np.stack(known) if known and len(known) == len(runs) and len({*map(len, known)}) == 1 else None

    def forget(self) -> None:
        self._correct.clear()

    def _checked(self, run: Run) -> npt.NDArray[np.bool_] | None:
        read = predictions(run)
        if read is None:
            self.oddities.append(
                f"{run.name} has no predictions.npz: its comparisons have no interval over images and no claim"
            )
            return None
        correct, label = read
        labels = self._labels.setdefault(len(label), label)
        if not np.array_equal(labels, label):
            self.oddities.append(
                f"{run.name} was tested on different images or in a different order: its comparisons have no interval"
            )
            return None
        accuracy, told = 100 * float(correct.mean()), _accuracy(run)
        if abs(accuracy - told) > 0.006:
            self.oddities.append(f"{run.name}: its predictions give {accuracy:.2f} %, its result.json {told:.2f} %")
        return correct


def _accuracy(run: Run) -> float:
    """Accuracy of a finished run."""
    if run.done is None or run.done.acc1_last is None:
        raise ValueError(f"{run.name} is not done")
    return run.done.acc1_last


def _compare(
    reader: _Predictions, pair: Pair, method: str, runs: list[Run], reference: str, others: list[Run]
) -> Comparison | None:
    """Compare two methods over the seeds that both have finished."""
    partner = {r.seed: r for r in others if r.done}
    own = [r for r in runs if r.done and r.seed in partner]
    reference_runs = [partner[r.seed] for r in own]
    per_seed = [_accuracy(a) - _accuracy(b) for a, b in zip(own, reference_runs, strict=True)]
    return compare(per_seed, reader.correct(own), reader.correct(reference_runs), f"{pair.name}/{method}/{reference}")


def _leader(reader: _Predictions, pair: Pair, entries: dict[str, Entry]) -> str | None:
    """The method with the highest mean, if its lead over the second is significant."""
    means = {m: e.last.mean for m, e in entries.items() if e.last}
    ranked = sorted(means, key=lambda m: -means[m])
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    lead = _compare(reader, pair, first, entries[first].runs, second, entries[second].runs)
    return first if lead is not None and lead.claim > 0 else None


def mean_curve(folders: list[Path]) -> dict[int, float]:
    """Mean accuracy over runs, for the epochs in which all runs were evaluated."""
    curves = [curve for folder in folders if (curve := _curve(folder / "metrics.csv"))]
    common = set.intersection(*(set(c) for c in curves)) if curves else set()
    return {epoch: float(np.mean([c[epoch] for c in curves])) for epoch in sorted(common)}


def _curve(path: Path) -> dict[int, float]:
    """Accuracy by main epoch (from 1), without first-stage epochs (up to 0) and lines that cannot be read."""
    out: dict[int, float] = {}
    for row in readable_rows(path):
        try:
            epoch, value = int(float(row["epoch"])), float(row.get("test/acc1") or row["val/acc1"])
        except (KeyError, OverflowError, ValueError):
            continue
        if 0 < epoch < LARGEST and abs(value) < LARGEST:
            out[epoch] = value
    return out
