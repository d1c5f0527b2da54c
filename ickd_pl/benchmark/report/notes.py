"""The report's notes: what limits its figures, and how they were computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ickd_pl.benchmark.published import EPOCHS, row_name
from ickd_pl.benchmark.records import CellResult
from ickd_pl.benchmark.report.results import Run
from ickd_pl.benchmark.report.statistics import DRAWS, FEWEST_SEEDS
from ickd_pl.benchmark.report.summary import Summary
from ickd_pl.benchmark.report.tables import STATES
from ickd_pl.runs.machine import Piece


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Data, epochs, seeds, precision, number of runs and time, as (name, value)."""
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
        *([("settings of speed", ", ".join(fast))] if (fast := _fast(r.done)) else []),
        ("runs done", f"{states['done']} of {total}"),
        ("time", f"{hours:.2f} hours in total" if hours >= 0.1 else f"{hours * 60:.1f} minutes in total"),
    ]


def basis(summary: Summary) -> str:
    """What every figure of the report is of, for the lines beneath tables and charts: data, epochs, seeds."""
    r = summary.results
    images = {c.num_test for c in r.done if c.num_test}
    split = "validation" if r.split == "val" else "test"
    number = f"{images.pop():,} " if len(images) == 1 else ""
    seeds = ", ".join(map(str, r.seeds)) or "none"
    part = "" if all(run.done for run in r.runs if run.planned) else ", as far as done"
    return (
        f"{r.data or 'unknown data'}, {number}{split} images; {r.epochs or 'unknown number of'} epochs; "
        f"{'seed' if len(r.seeds) == 1 else 'seeds'} {seeds}{part}"
    )


def published_are(summary: Summary) -> str:
    """What published figures are of, and whether they are compared; empty if there are none."""
    if not any(e.published for e in summary.entries.values()):
        return ""
    what = f"of {EPOCHS} epochs{' and another teacher' if summary.other_teachers else ''}"
    if summary.not_compared:
        return f"Published figures are {what}: no difference is computed."
    return f"Published figures are {what}; the difference is the last epoch's mean minus the published figure."


def _fast(results: Sequence[CellResult]) -> list[str]:
    """The module's switches, all in docs/speed.md, that are on by some run's settings."""
    models = [model for c in results if isinstance(model := c.recipe.get("model"), dict)]
    found = dict.fromkeys(name for model in models for name, value in model.items() if value is True)
    return [*found, *(["fused"] if any(c.recipe.get("fused") is True for c in results) else [])]


def notes(summary: Summary) -> list[str]:
    """What limits the figures, one or two sentences each."""
    r = summary.results
    return [
        *_completeness(summary),
        *_seeds(summary),
        *([f"Not compared with published figures: {summary.not_compared}."] if summary.not_compared else []),
        *([_validation()] if r.split == "val" else []),
        *_code(summary),
        *_differing(summary),
        *_continued_elsewhere(summary),
        *_chosen(r.runs),
        *(f"{text}." for text in summary.oddities),
    ]


def _completeness(summary: Summary) -> list[str]:
    runs = summary.results.runs
    states = Counter(run.state for run in runs if run.planned)
    out = []
    if others := {state: count for state, count in states.items() if state != "done"}:
        parts = [f"{count} {state}" for state, count in others.items()]
        out.append(f"Incomplete: {states['done']} runs are done, {', '.join(parts)}. All runs are listed below.")
    for state, text in (
        ("failed", "failed"),
        ("refused", f"cannot work on their pair ({STATES['refused']} in the tables)"),
    ):
        for reason, count in Counter(r.reason for r in runs if r.state == state and r.planned).items():
            out.append(f"Runs that {text}: {count}, excluded from all means. {reason or 'No reason was recorded'}.")
    if extra := [run for run in runs if not run.planned]:
        out.append(
            f"Results not requested by benchmark.yaml: {len(extra)}, listed with the runs, excluded from all means."
        )
    return out


def _seeds(summary: Summary) -> list[str]:
    few = [c for c in summary.comparisons if len(c.per_seed) < FEWEST_SEEDS]
    if not few:
        return []
    which = "These comparisons have" if len(few) == len(summary.comparisons) else f"{len(few)} comparisons have"
    return [
        f"{which} fewer than {FEWEST_SEEDS} seeds: no significance is claimed for them. An interval over test images "
        "alone does not cover the variation between trainings."
    ]


def _validation() -> str:
    return "Accuracies are measured on a validation split, not on the test images."


def _code(summary: Summary) -> list[str]:
    accepted = [r for r in summary.results.runs if r.result is not None and r.result.accepted_code]
    if not accepted:
        return []
    names = ", ".join(r.name for r in accepted[:6])
    more = f" and {len(accepted) - 6} more" if len(accepted) > 6 else ""
    return [f"MIXED CODE: {len(accepted)} runs of different code, accepted by --accept-code ({names}{more})."]


def _differing(summary: Summary) -> list[str]:
    """Versions, devices and hashes that differ between runs; each may affect a figure."""
    planned = [r for r in summary.results.runs if r.planned]
    found = {t.name: set(t.values) for t in summary.results.traits(planned)}
    # A teacher may be trained on different images than the students.
    students = summary.results.traits(r for r in planned if r.pair is not None)
    found["data"] = next(set(t.values) for t in students if t.name == "data")
    several = [f"{name} ({len(found[name])})" for name in sorted(found) if len(found[name]) > 1]
    return [f"Not identical in all runs: {', '.join(several)}; see versions and hashes."] if several else []


def _continued_elsewhere(summary: Summary) -> list[str]:
    """Runs that different devices or versions trained parts of, and which parts."""
    found: dict[str, list[str]] = {}
    for run in summary.results.runs:
        if run.result is not None and run.result.pieces:
            found.setdefault(_parts(run.result.pieces), []).append(run.name)
    return [
        f"Not trained in one place: {len(names)} runs ({', '.join(names[:6])}"
        f"{f' and {len(names) - 6} more' if len(names) > 6 else ''}): {text}."
        for text, names in found.items()
    ]


def _parts(pieces: list[Piece]) -> str:
    sets = [{"precision": piece.precision, **piece.versions} for piece in pieces]
    differing = [name for name in sets[-1] if len({each.get(name) for each in sets}) > 1]
    texts = [f"the epochs before {pieces[0].first} are not recorded"] if pieces[0].first > 1 else []
    for piece, each in zip(pieces, sets, strict=True):
        what = "".join(f", {name} {each.get(name, 'unknown')}" for name in differing)
        texts.append(f"epochs {piece.first} to {piece.last} on {piece.device}{what}")
    return "; ".join(texts)


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
                f"selected on a validation split, not on test images{' (' + each + ')' if each else ''}."
            )
    return out


def _arguments(values: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items()) if isinstance(values, dict) else str(values)


def methods_text(summary: Summary) -> list[str]:
    """How the figures were computed, one string per paragraph."""
    count = len(summary.comparisons)
    family = (
        f" This report makes {count} comparisons without correction for multiple testing: where there is no "
        "difference, about one interval in twenty excludes zero by chance."
        if count > 1
        else ""
    )
    return [
        "Accuracy is top-1 in percent after the last epoch: the mean over seeds, and after ± the sample standard "
        "deviation (n - 1), which needs at least two seeds. The best epoch is for information only: it is selected on "
        "the split it is measured on, which biases it upwards.",
        "A difference to KD or Vanilla is the mean over the seeds that both methods have, on the same test images. It "
        "has three 95 % intervals. Images: a bootstrap over the test images with the trained networks fixed "
        f"({DRAWS:,} draws, each shared by both methods and all seeds); it covers the choice of test images, not the "
        "variation between trainings. Seeds (t): Student's t over the differences per seed; it covers the variation "
        "between trainings, not the choice of images. Images and seeds: both half-widths added in quadrature; it is "
        "never shorter than the interval over seeds.",
        f"A difference is claimed (above, below) if the interval over images and seeds excludes zero and there are at "
        f"least {FEWEST_SEEDS} seeds; the same rule applies to the lead of a pair's best method over the second. With "
        "few seeds this interval is wide: no claim does not mean no difference." + family,
        "Published figures come from ICKD's table (its baselines are RepDistiller's), else from RepDistiller's README, "
        "else, for CRD+KD, from the CRD paper; report.csv names the source of each. They are last-epoch accuracies; † "
        "marks ICKD's own two rows, for which the epoch and the number of runs are not stated. They are published "
        "without a standard deviation, so no difference to them is claimed, and are of the authors' own teachers. Only "
        f"runs evaluated on CIFAR-100's test images after {EPOCHS} epochs are compared.",
        "Hours are wall-clock time; for a packed run, its share of the pack's time. Do not compare the hours of packed "
        "and separate runs, or of different devices. Images per second are training images. No run is dropped: "
        "failed, refused, unfinished and missing runs are listed as such.",
    ]
