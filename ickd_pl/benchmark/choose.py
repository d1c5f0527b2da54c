"""Choose a method's arguments on validation images, never on the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ickd_pl.benchmark.cells import Job, remove, train_alone
from ickd_pl.benchmark.folder import ResultsFolder
from ickd_pl.benchmark.plan import Cell
from ickd_pl.benchmark.records import read_accuracy, write_accuracy
from ickd_pl.benchmark.schema import combinations
from ickd_pl.runs import RunFolder


def choose(folder: ResultsFolder, cell: Cell) -> dict[str, Any]:
    """Train a cell with each combination of its listed arguments, without the validation images, and choose the best.

    The criterion is the last epoch's accuracy on ``val_size`` held-out training images; ties go to the combination
    listed first. The cell itself is then trained on all training images.

    Args:
        folder: the results folder; its benchmark's ``choices`` are ``{method: {Class.argument: [values]}}``.
        cell: the cell to choose for.

    Returns:
        ``arguments`` (the chosen ones), ``candidates`` (each with its accuracy), ``val_size``, and ``overrides``, the
        settings that pass the choice to the ``fit``.
    """
    settings, method = folder.benchmark.settings, str(cell.method)
    held_out = {"data": {"init_args": {"val_size": settings.val_size}}}
    candidates: list[dict[str, Any]] = []
    for number, arguments in enumerate(combinations(settings.choices[method])):
        path = folder.choices_of(cell) / str(number)
        overrides = {"model": {"strategies": folder.benchmark.chosen(method, arguments)}, **held_out}
        folder.mark_started(cell, path)
        candidates.append({"arguments": arguments, "val_acc1": _accuracy(folder, cell, path, overrides)})
        folder.log(f"  {cell} {arguments}: {candidates[-1]['val_acc1']:.2f} percent on validation images")
    best = max(candidates, key=lambda candidate: float(candidate["val_acc1"]))
    return {
        "arguments": best["arguments"],
        "candidates": candidates,
        "val_size": settings.val_size,
        "overrides": {"model": {"strategies": folder.benchmark.chosen(method, best["arguments"])}},
    }


def _accuracy(folder: ResultsFolder, cell: Cell, path: Path, overrides: dict[str, Any]) -> float:
    stored = read_accuracy(path)
    if stored is not None:
        return stored
    weights = folder.teachers.weights(str(cell.teacher))
    outcome = train_alone(Job(cell, folder.benchmark.args(cell, weights, path, overrides), path))
    accuracy = 0.0
    if outcome.status == "done":
        accuracy = RunFolder(path).rows()[-1]["val/acc1"]
    write_accuracy(path, accuracy)
    remove(path / "checkpoints")
    return accuracy
