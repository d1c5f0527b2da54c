"""The tables and the picture of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ladder_parts.rungs import DEFAULTS, FAST, OLD, PLAIN

# Plain loop against the version BEFORE, as the neighbours' own loops were measured against it (ms by ms).
ACCEPTED = {
    "resnet20_resnet8": {"vanilla": 0.90, "kd": 0.66, "ickd": 0.65},
    "resnet32x4_resnet8x4": {"vanilla": 0.99, "kd": 0.87, "ickd": 1.02},
}
TOLERANCE = 0.1
# The recipe: epochs of 50,000 images.
EPOCHS, IMAGES = 240, 50_000


def best(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The contestants of a group, of rivals only the fastest."""
    kept = []
    fastest: dict[str, dict[str, Any]] = {}
    for each in group["contestants"]:
        rivals = each["rivals"]
        if not rivals:
            kept.append(each)
        elif each["found"] and (rivals not in fastest or median(each) < median(fastest[rivals])):
            fastest[rivals] = each
    return [*fastest.values(), *kept]


def median(contestant: dict[str, Any], what: str = "ms") -> float:
    return statistics.median(each[what] for each in contestant["found"])


def times_faster(contestant: dict[str, Any], other: dict[str, Any]) -> float:
    """The other's time over this one's: the median over the rounds that both took."""
    pairs = zip(other["found"], contestant["found"], strict=False)
    return statistics.median(a["ms"] / b["ms"] for a, b in pairs)


def _images(group: dict[str, Any], each: dict[str, Any], options: dict[str, Any]) -> int:
    if group["table"] == "evaluation":
        return int(options["test_images"])
    rows = len(each["given"].get("methods", group["methods"]))
    return int(each["given"].get("batch", options["batch"])) * rows


def _share(group: dict[str, Any], each: dict[str, Any], found: dict[str, Any]) -> str:
    """Of the convolution peak in the contestant's own precision."""
    gflop = found["machine"]["gflop"][group["pair"]]
    rate = gflop[group["methods"][0]] * _images(group, each, found["options"]) / median(each) * 1e3
    return f"{100 * rate / found['machine']['peak']['torch.bfloat16' if each['half'] else 'torch.float32']:.0f} %"


def _row(group: dict[str, Any], each: dict[str, Any], base: dict[str, Any] | None, found: dict[str, Any]) -> list[str]:
    ms = [one["ms"] for one in each["found"]]
    images = _images(group, each, found["options"])
    rows = len(each["given"].get("methods", group["methods"]))
    per_second = images / median(each) * 1e3
    row = [each["label"], f"{median(each):,.1f}", f"{min(ms):,.1f} to {max(ms):,.1f}"]
    if base is not None:
        # In the tables of scale a step of each contestant has other images.
        row.append(f"{times_faster(each, base) * images / _images(group, base, found['options']):.2f}")
    row += [f"{per_second:,.0f}", f"{median(each, 'faults'):,.0f}", f"{median(each, 'peak'):.2f}"]
    if group["table"] == "solo":
        row.append(_share(group, each, found))
    if group["table"] != "evaluation":
        row.append(f"{EPOCHS * IMAGES * rows / per_second / 3600:,.1f}")
    return row


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _group(name: str, group: dict[str, Any], found: dict[str, Any]) -> list[str]:
    contestants = best(group)
    measured = [each for each in contestants if each["found"]]
    what = {"evaluation": "an evaluation", "packed": "a step of all rows"}.get(group["table"], "a step")
    base = next((each for each in measured if each["label"].startswith(PLAIN)), measured[0] if measured else None)
    head = [name, f"ms {what}", "min to max"]
    if base is not None:
        head.append(f"times {PLAIN if base['rivals'] else base['label']}")
    head += ["images/s", "page faults", "peak GB"]
    if group["table"] == "solo":
        head.append("share of peak")
    if group["table"] != "evaluation":
        head.append("hours, 240 epochs")
    lines = _table(head, (_row(group, each, base, found) for each in measured))
    missing = [f"{each['label']} ({each['note']})" for each in contestants if not each["found"]]
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    return [*lines, ""]


def as_text(found: dict[str, Any]) -> str:
    """All tables in Markdown."""
    machine, options = found["machine"], found["options"]
    peaks = ", ".join(f"{gflops:,.0f} GFLOP/s in {dtype[6:]}" for dtype, gflops in machine["peak"].items())
    lines = [
        f"{machine['name']}; torch {machine['torch']}, {machine['threads']} threads; peak of its 3x3 convolutions "
        f"{peaks}. Batch {options['batch']}, {options['images']:,} images, {found['version']}, {found['date']}.",
        "",
    ]
    for name, group in found["groups"].items():
        lines += _group(name, group, found)
    return "\n".join([*lines, _slower(found), ""])


def _slower(found: dict[str, Any]) -> str:
    """Where the project loses against the plain loop."""
    lost = []
    for name, group in found["groups"].items():
        measured = {each["rivals"] or each["label"]: each for each in best(group) if each["found"]}
        for label in (DEFAULTS, FAST, "pack", f"pack, {FAST}"):
            if {label, PLAIN} <= set(measured) and (ratio := times_faster(measured[label], measured[PLAIN])) < 1:
                lost.append(f"{name}, {label} ({ratio:.2f})")
    return f"Slower than the plain loop: {'; '.join(lost) if lost else 'none of ours'}."


def accepted(found: dict[str, Any]) -> tuple[str, bool]:
    """The plain loop against the version BEFORE, with the ratios that it has to have; whether it has them all."""
    rows, right = [], True
    for name, group in found["groups"].items():
        contestants = {each["rivals"] or each["label"]: each for each in best(group) if each["found"]}
        if group["table"] != "solo" or not {PLAIN, OLD} <= set(contestants):
            continue
        ratio = 1 / times_faster(contestants[PLAIN], contestants[OLD])
        wanted = ACCEPTED.get(group["pair"], {}).get(group["methods"][0])
        within = wanted is None or abs(ratio / wanted - 1) <= TOLERANCE
        right = right and within
        verdict = "" if wanted is None else "within 10 %" if within else f"off by {100 * (ratio / wanted - 1):+.0f} %"
        of = [f"{median(contestants[key]):,.1f}" for key in (PLAIN, OLD)]
        rows.append([name, contestants[PLAIN]["label"], *of, f"{ratio:.2f}", f"{wanted or ''}", verdict])
    head = ["plain loop / " + OLD, "workers", "plain, ms", f"{OLD}, ms", "ratio", "expected", ""]
    return "\n".join(_table(head, rows)), right


def write_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what a page has between ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Raises:
        ValueError: it has none.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        raise ValueError(f"{path} lacks the lines {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def draw(found: dict[str, Any], path: Path) -> None:
    """Bars of the time of a step: a picture for each pair and method, and for the packed rows."""
    from matplotlib.figure import Figure  # without pyplot no display is needed

    groups = {name: group for name, group in found["groups"].items() if group["table"] in ("solo", "packed")}
    pairs = list(dict.fromkeys(group["pair"] for group in groups.values()))
    if not pairs:
        return
    columns = max(sum(group["pair"] == pair for group in groups.values()) for pair in pairs)
    figure = Figure(figsize=(3.6 * columns + 1, 3.4 * len(pairs)), layout="constrained")
    axes = figure.subplots(len(pairs), columns, squeeze=False)
    for line, pair in zip(axes, pairs, strict=True):
        own = [(name, group) for name, group in groups.items() if group["pair"] == pair]
        for place in line[len(own) :]:
            place.axis("off")
        for place, (name, group) in zip(line, own, strict=False):
            measured = [each for each in best(group) if each["found"]]
            values = [median(each) for each in measured]
            colors = ["0.45" if each["rivals"] else "0.7" if OLD in each["label"] else "C0" for each in measured]
            low = [v - min(one["ms"] for one in e["found"]) for v, e in zip(values, measured, strict=True)]
            high = [max(one["ms"] for one in e["found"]) - v for v, e in zip(values, measured, strict=True)]
            bars = place.barh([each["label"] for each in measured], values, color=colors, xerr=[low, high])
            texts = [
                f"{value:,.0f}  ({times_faster(e, measured[0]):.2f}x)"
                for value, e in zip(values, measured, strict=True)
            ]
            place.bar_label(bars, texts, padding=4, fontsize=7)
            place.invert_yaxis()
            place.set_xlim(0, 1.45 * max(values, default=1))
            place.set_title(name, fontsize=9)
            place.tick_params(labelsize=7)
            place.set_xlabel("ms a step", fontsize=7)
    figure.savefig(path, dpi=130)
