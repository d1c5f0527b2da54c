"""The progress of a benchmark, also while it runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ickd_pl.benchmark.plan import Benchmark, Cell, Group
from ickd_pl.benchmark.records import benchmark_file, read_result
from ickd_pl.runs.lock import holder
from ickd_pl.runs.metrics_file import readable_rows


def status(folder: Path) -> str:
    """One line for each cell of the benchmark, and a summary.

    Args:
        folder: the results folder.

    Raises:
        UserError: it is not a results folder, or a file in it is damaged.
    """
    benchmark = Benchmark.of(benchmark_file(folder), folder / "benchmark.yaml", choices=False)
    lines, counts = [], Counter[str]()
    for cell in benchmark.cells:
        state, text = _state(folder, cell, benchmark)
        counts[state] += 1
        lines.append(f"{state:9} {cell}{text}")
    total = sum(counts.values())
    summary = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return "\n".join([*lines, "", f"{benchmark.settings.name}: {total} cells: {summary}"])


def _state(folder: Path, cell: Cell, benchmark: Benchmark) -> tuple[str, str]:
    path = folder / "cells" / cell.path
    result = read_result(path)
    if result is not None:
        reason = f": {result.reason}" if result.reason else ""
        return result.status, ("" if result.acc1_last is None else f" {result.acc1_last:.2f}") + reason
    epochs, done = benchmark.max_epochs(cell.kind), _epochs(path / "metrics.csv")
    if holding := holder(path) or _holder_of_pack(folder, cell):
        return "running", f" epoch {done} of {epochs} ({holding})"
    return ("half done", f" epoch {done} of {epochs}") if done else ("to do", "")


def _holder_of_pack(folder: Path, cell: Cell) -> str:
    """The process that trains the cell in a pack; empty if none does.

    Which methods can be packed only their classes know, whose import takes seconds. A process that has locked a pack
    writes into the folder of each member that it starts, and not into those of other methods.
    """
    pack = folder / Group((cell,), packed=True).path
    if cell.kind == "teacher" or not (holding := holder(pack)):
        return ""
    locked, started = pack / ".holder", folder / "cells" / cell.path / "identity.json"
    since, began = (path.stat().st_mtime if path.exists() else 0.0 for path in (locked, started))
    return holding if began >= since else ""


def _epochs(path: Path) -> int:
    return sum(1 for row in readable_rows(path) if _is_main(row.get("epoch")))


def _is_main(epoch: str | None) -> bool:
    """Whether a row is of a main epoch (numbered from 1); a truncated row is not."""
    try:
        return float(epoch or "") >= 1
    except ValueError:
        return False
