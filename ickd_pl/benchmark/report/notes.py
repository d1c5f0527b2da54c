"""What a reader must know before the figures, and how they were made."""

from __future__ import annotations

from collections import Counter

from ickd_pl.benchmark.published import EPOCHS, row_name
from ickd_pl.benchmark.report.results import Run
from ickd_pl.benchmark.report.statistics import DRAWS, FEWEST_SEEDS
from ickd_pl.benchmark.report.summary import Summary
from ickd_pl.benchmark.report.tables import STATES


def facts(summary: Summary) -> list[tuple[str, str]]:
    """The benchmark in a line."""
    r = summary.results
    precisions = dict.fromkeys(c.precision for c in r.done if c.precision)
    states = Counter(run.state for run in r.runs if run.planned)
    total = sum(states.values())
    hours = sum(c.hours or 0.0 for c in r.done)
    return [
        ("data", r.data or "unknown"),
        ("epochs", str(r.epochs or "unknown")),
        ("seeds", ", ".join(map(str, r.seeds)) or "none"),
        ("precision", ", ".join(precisions) or "unknown"),
        ("runs done", f"{states['done']} of {total}"),
        ("time", f"{hours:.2f} hours in all" if hours >= 0.1 else f"{hours * 60:.1f} minutes in all"),
    ]


def notes(summary: Summary) -> list[str]:
    """What limits the figures; each a sentence or two."""
    r = summary.results
    return [
        *_completeness(summary),
        *_seeds(summary),
        *([f"Not set against published figures: {summary.not_compared}."] if summary.not_compared else []),
        *([_validation()] if r.split == "val" else []),
        *_code(summary),
        *_differing(summary),
        *_chosen(r.runs),
        *(f"{text}." for text in summary.oddities),
    ]


def _completeness(summary: Summary) -> list[str]:
    runs = summary.results.runs
    states = Counter(run.state for run in runs if run.planned)
    out = []
    if others := {state: count for state, count in states.items() if state != "done"}:
        parts = [f"{count} {state}" for state, count in others.items()]
        out.append(f"Incomplete: {states['done']} runs are done, {', '.join(parts)}. All are listed below.")
    for state, text in (("failed", "failed"), ("refused", f"are not possible ({STATES['refused']} in the tables)")):
        for reason, count in Counter(r.reason for r in runs if r.state == state and r.planned).items():
            out.append(f"Runs that {text}: {count}, in no mean. {reason or 'No reason was recorded'}.")
    if extra := [run for run in runs if not run.planned]:
        out.append(f"Results that benchmark.yaml does not ask for: {len(extra)}, listed with the runs, in no mean.")
    return out


def _seeds(summary: Summary) -> list[str]:
    few = [c for c in summary.comparisons if len(c.per_seed) < FEWEST_SEEDS]
    if not few:
        return []
    which = "These comparisons have" if len(few) == len(summary.comparisons) else f"{len(few)} comparisons have"
    return [
        f"{which} fewer than {FEWEST_SEEDS} seeds: no significance is claimed for them. An interval over images alone "
        "says nothing of training again."
    ]


def _validation() -> str:
    return "Accuracies are those of a validation split, not of the test images."


def _code(summary: Summary) -> list[str]:
    accepted = [r for r in summary.results.runs if r.result is not None and r.result.accepted_code]
    if not accepted:
        return []
    names = ", ".join(r.name for r in accepted[:6])
    more = f" and {len(accepted) - 6} more" if len(accepted) > 6 else ""
    return [f"MIXED CODE: runs made by other code and accepted all the same: {len(accepted)} ({names}{more})."]


def _differing(summary: Summary) -> list[str]:
    """What is not the same in all runs; each may move a figure."""
    planned = [r for r in summary.results.runs if r.planned]
    found = {t.name: set(t.values) for t in summary.results.traits(planned)}
    # A teacher may well see other images than the students.
    students = summary.results.traits(r for r in planned if r.pair is not None)
    found["data"] = next(set(t.values) for t in students if t.name == "data")
    several = [f"{name} ({len(found[name])})" for name in sorted(found) if len(found[name]) > 1]
    return [f"Not the same in all runs: {', '.join(several)}; see versions and hashes."] if several else []


def _chosen(runs: list[Run]) -> list[str]:
    out = []
    for run in runs:
        choice = run.done.chosen_on_validation if run.done is not None else None
        if choice:
            candidates = choice.get("candidates")
            tried = [c for c in candidates if isinstance(c, dict)] if isinstance(candidates, list) else []
            each = "; ".join(f"{_arguments(c.get('arguments'))}: {c.get('val_acc1')}" for c in tried)
            out.append(
                f"{row_name(run.method)} on {run.pair}, seed_{run.seed}: {_arguments(choice.get('arguments'))} was "
                f"chosen on a validation split, never on test{' (' + each + ')' if each else ''}."
            )
    return out


def _arguments(values: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items()) if isinstance(values, dict) else str(values)


def methods_text(summary: Summary) -> list[str]:
    """How the figures were made, a paragraph each."""
    count = len(summary.comparisons)
    family = (
        f" This report makes {count} comparisons and corrects nothing for their number: about one in twenty would "
        "exclude zero by chance where there is no difference at all."
        if count > 1
        else ""
    )
    return [
        "Accuracy is top-1 in percent after the last epoch: mean and, after ±, the sample standard deviation (n - 1) "
        "over seeds. One seed has none. The best epoch is for information only: it is chosen on the split it is "
        "measured on, which adds to it.",
        "A difference to KD or Vanilla is the mean, over the seeds that both have, of the difference on the same "
        "images. Three intervals of 95 % stand beside it. Images: the trained networks are kept and the test images "
        f"drawn again with replacement, {DRAWS:,} times, one draw for both methods and all seeds; it covers the choice "
        "of test images and not training again. Seeds (t): Student's t over the differences per seed; it covers "
        "training again and not the choice of images. Images and seeds: the squares of both half-widths added; it is "
        "never shorter than that over seeds.",
        f"A difference is claimed (above, below) where the interval over images and seeds excludes zero, with at least "
        f"{FEWEST_SEEDS} seeds; so is the lead of the best method of a pair over the second. With few seeds this "
        "interval is wide: no claim does not mean no difference." + family,
        "Published figures are ICKD's table (its baselines are RepDistiller's), else RepDistiller's README, else the "
        "CRD paper's for CRD+KD, as report.csv says for each. They are last-epoch accuracies; † marks ICKD's own two "
        "rows, whose epoch and number of runs are not stated. They come without a deviation, so that nothing is "
        f"claimed of a difference to them. Only runs on CIFAR-100's test images after {EPOCHS} epochs are compared.",
        "Hours are of the wall clock, a packed run's being its share of the pack's: packed and solo hours are not to "
        "be compared with each other, nor hours of different devices. Images per second are training images. No run "
        "is dropped: those that failed, were refused, did not finish or are missing are listed as such.",
    ]
