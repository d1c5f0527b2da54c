"""The demo: a teacher on all images of Digits, then four students on few, as a benchmark of one command.

    python examples/demo.py [--output outputs/demo]

The command is printed before it runs. Stop it with Ctrl-C and start it again: finished cells are kept, others continue.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ickd_pl import load_student
from ickd_pl.benchmark.plan import Benchmark, Cell
from ickd_pl.benchmark.published import network_name, row_name
from ickd_pl.cli import main as ickd
from ickd_pl.data.digits import NUM_TEST
from ickd_pl.runs import RunFolder

CONFIG = "configs/benchmarks/quick.yaml"


class Result(NamedTuple):
    """What a finished run left: accuracies in percent on the test images, one for each epoch."""

    label: str
    accuracy: list[float]
    parameters: int
    seconds: float
    checkpoint: Path


def read_result(output: Path, cell: Cell) -> Result:
    """Read a finished cell's ``metrics.csv`` and count the parameters of the network in its checkpoint."""
    folder = RunFolder(output / "cells" / cell.path)
    with folder.metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parameters = sum(parameter.numel() for parameter in load_student(folder.last).parameters())
    accuracy, seconds = [float(row["test/acc1"]) for row in rows], sum(float(row["seconds"]) for row in rows)
    return Result(row_name(cell.method), accuracy, parameters, seconds, folder.last)


def table(results: Sequence[Result]) -> str:
    """The results in Markdown, with a line on what they are worth."""
    rows = [("", "last", "best", "parameters", "seconds"), ("---", *["---:"] * 4)]
    for r in results:
        last, best = f"{r.accuracy[-1]:.2f}", f"{max(r.accuracy):.2f}"
        rows.append((r.label, last, best, f"{r.parameters:,}", f"{r.seconds:.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([label.ljust(widths[0]), *padded])} |")
    # Two standard deviations of the difference of two such accuracies, each a share of NUM_TEST images.
    share = sum(r.accuracy[-1] for r in results[1:]) / len(results[1:]) / 100
    noise = max(1, math.ceil(200 * math.sqrt(2 * share * (1 - share) / NUM_TEST)))
    note = (
        f"Digits, one seed, accuracy in percent on {NUM_TEST} test images. One image is {100 / NUM_TEST:.2f} points: "
        f"differences under about {noise} points mean nothing. Best is the best epoch on these same test images, "
        "for information only."
    )
    return "\n".join([*lines, "", note])


def draw(results: Sequence[Result], title: str, path: Path) -> None:
    """Draw the test accuracy by epoch of every cell."""
    from matplotlib.figure import Figure  # without pyplot no display is needed, and no backend is chosen for the caller

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for r in results:
        color = "0.3" if r is results[0] else None
        axes.plot(range(1, len(r.accuracy) + 1), r.accuracy, color=color, label=f"{r.label} {r.accuracy[-1]:.1f}")
    axes.axhline(results[0].accuracy[-1], color="0.3", linewidth=0.8, linestyle=":")
    axes.set(xlabel="epoch", ylabel="test accuracy, percent", ylim=(0, 100))
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(title="last epoch, percent", loc="lower right")
    figure.savefig(path, dpi=150)


def main(args: Sequence[str] | None = None) -> int:
    """Run what is not finished yet, then show the results.

    Returns:
        The exit status: 0, or that of the benchmark.
    """
    parser = argparse.ArgumentParser(description="Train a small teacher on Digits and distil four students.")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of the cells and the results")
    parser.add_argument("--config", default=CONFIG, help="the benchmark file")
    options = parser.parse_args(args)
    if importlib.util.find_spec("matplotlib") is None:
        print("error: the demo draws its curves with matplotlib: run pip install 'ickd-pl[demo]'", file=sys.stderr)
        return 2
    began = time.perf_counter()
    command = ["bench", "run", "--config", options.config, "--output", str(options.output)]
    print(f"python cli.py {' '.join(command)}\n", flush=True)
    if status := ickd(command):
        return status
    cells = Benchmark.read(options.config).cells
    results = [read_result(options.output, cell) for cell in cells]
    title = f"Digits: {network_name(str(cells[1].teacher))} teaches {network_name(cells[1].network)}"
    text, picture, page = table(results), options.output / "curves.png", options.output / "table.md"
    draw(results, title, picture)
    page.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nlearning curves: {picture}\ntable: {page}\ncheckpoints:")
    for result in results:
        print(f"  {result.label:16} {result.checkpoint}")
    print(f"whole demo: {time.perf_counter() - began:.0f} seconds")
    return 0


if __name__ == "__main__":
    # So small a network gains little from more threads on a CPU and, where others use the cores too, loses much.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    sys.exit(main())
