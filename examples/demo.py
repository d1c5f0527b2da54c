"""The demo: a teacher on all images of Digits, then students on 50 of them, as a benchmark of one command.

    python examples/demo.py [--output outputs/demo]

The command is printed before it runs. Stop it with Ctrl-C and start it again: finished cells are kept, others continue.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ickd_pl.benchmark.published import network_name, row_name
from ickd_pl.benchmark.report.format import interval_text, mean_text
from ickd_pl.benchmark.report.results import read_results
from ickd_pl.benchmark.report.summary import Entry, Summary, mean_curve, summarise
from ickd_pl.cli import main as ickd

CONFIG = "configs/benchmarks/demo.yaml"
NEXT = """What to do next:
  all runs, curves and paired differences: open {output}/report.html in a browser
  one more method:      copy {config}, add sp to its methods, and run the command above with the copy
  your own network:     README.md has it in Python, and as one command
  your own images:      docs/own_data.md
  CIFAR-100, the table: {ickd} bench plan --config configs/benchmarks/cifar100_resnet56_resnet20.yaml"""


def table(summary: Summary) -> str:
    """The means over the seeds in Markdown, what each method adds to Vanilla, and what that is worth."""
    pair, results = summary.results.pairs[0], summary.results
    entries = [summary.entry(pair, method) for method in summary.rows]
    rows = [("", "accuracy", "minus Vanilla", "95 % interval", "parameters"), ("---", *["---:"] * 4)]
    claims: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for entry in entries:
        difference = interval = "-"
        if found := entry.against.get("vanilla"):
            claims[found.claim].append(row_name(entry.method))
            difference = f"{found.difference:+.2f}"
            interval = interval_text(found.both) if found.both else "-"
        accuracy = mean_text(entry.last) if entry.last else "-"
        rows.append((row_name(entry.method), accuracy, difference, interval, f"{entry.done[0].parameters:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([label.ljust(widths[0]), *padded])} |")
    images, tested = results.setting("data", "init_args", "train_size"), results.done[0].num_test
    note = (
        f"Digits. Accuracy after the last epoch in percent on {tested} test images; of the students the mean and "
        f"standard deviation over {len(results.seeds)} seeds. They learn from {images} labelled images, the teacher "
        "from 1,437. The interval counts both other seeds and other test images."
    )
    verdict = [
        f"{words}: {', '.join(claims[sign])}."
        for sign, words in ((1, "Above Vanilla beyond noise"), (-1, "Below it beyond noise"), (0, "Not told from it"))
        if claims[sign]
    ]
    return "\n".join([*lines, "", note, " ".join(verdict)])


def draw(summary: Summary, path: Path) -> None:
    """Draw the test accuracy by epoch: a thin line for each run, a thick one for the mean over the seeds."""
    from matplotlib.figure import Figure  # without pyplot no display is needed, and no backend is chosen for the caller

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    pair = summary.results.pairs[0]
    teacher, *students = [summary.entry(pair, method) for method in summary.rows]
    for number, entry in enumerate(students):
        for run in entry.runs:
            curve = mean_curve([run.folder])
            axes.plot(list(curve), list(curve.values()), color=f"C{number}", linewidth=0.6, alpha=0.5)
        axes.plot(list(entry.curve), list(entry.curve.values()), color=f"C{number}", linewidth=2, label=_label(entry))
    if teacher.last:
        axes.axhline(teacher.last.mean, color="0.3", linestyle=":", label=_label(teacher))
    axes.set(xlabel="epoch", ylabel="test accuracy, percent", ylim=(0, 100))
    images = summary.results.setting("data", "init_args", "train_size")
    axes.set_title(f"Digits: {network_name(pair.teacher)} teaches {network_name(pair.student)} on {images} images")
    axes.grid(alpha=0.3)
    axes.legend(title="after the last epoch, percent", loc="lower right")
    figure.savefig(path, dpi=150)


def _label(entry: Entry) -> str:
    return f"{row_name(entry.method)} {entry.last.mean:.1f}" if entry.last else row_name(entry.method)


def main(args: Sequence[str] | None = None) -> int:
    """Run what is not finished yet, then show the results.

    Returns:
        The exit status: 0, or that of the benchmark.
    """
    parser = argparse.ArgumentParser(description="Train a small teacher on Digits and distil students on few images.")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of the cells and the results")
    parser.add_argument("--config", default=CONFIG, help="the benchmark file")
    options = parser.parse_args(args)
    if importlib.util.find_spec("matplotlib") is None:
        print(
            "error: the demo draws its curves with matplotlib: run pip install '.[demo]' in the clone", file=sys.stderr
        )
        return 2
    began = time.perf_counter()
    command = ["bench", "run", "--config", options.config, "--output", str(options.output)]
    print(f"python cli.py {' '.join(command)}\n", flush=True)
    if status := ickd(command):
        return status
    summary = summarise(read_results(options.output))
    picture, page = options.output / "curves.png", options.output / "table.md"
    draw(summary, picture)
    text = table(summary)
    page.write_text(text + "\n", encoding="utf-8")
    seconds = time.perf_counter() - began
    print(f"\n{text}\n\nlearning curves: {picture}\ntable: {page}\nwhole demo: {seconds:.0f} seconds\n")
    print(NEXT.format(output=options.output, config=options.config, ickd="python cli.py"))
    return 0


if __name__ == "__main__":
    # So small a network gains little from more threads on a CPU and, where others use the cores too, loses much.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    sys.exit(main())
