"""Choose a method's arguments on validation images, never on the test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.cells import Job, remove, train_alone
from ickd_pl.benchmark.folder import ResultsFolder
from ickd_pl.benchmark.plan import Cell
from ickd_pl.benchmark.schema import combinations
from ickd_pl.files import write_text
from ickd_pl.runs import RunFolder


def choose(folder: ResultsFolder, cell: Cell) -> dict[str, Any]:
    """Train a cell with each combination of its listed arguments, without the validation images, and take the best.

    The choice is the last epoch's accuracy on ``val_size`` training images that are held out; the first listed wins a
    tie. The cell itself is then trained on all training images.

    Args:
        folder: the cell's results folder; the benchmark's ``choices`` has ``{method: {Class.argument: [values]}}``.
        cell: the cell.

    Returns:
        ``arguments`` (the chosen ones), ``candidates`` (each with its accuracy), ``val_size``, and ``overrides``, the
        settings that put the choice into the ``fit``.
    """
    settings, method = folder.benchmark.settings, str(cell.method)
    held_out = {"data": {"init_args": {"val_size": settings.val_size}}}
    candidates: list[dict[str, Any]] = []
    for number, arguments in enumerate(combinations(settings.choices[method])):
        place = folder.choices_of(cell) / str(number)
        overrides = {"model": {"strategies": folder.benchmark.chosen(method, arguments)}, **held_out}
        folder.begin(cell, place)
        candidates.append({"arguments": arguments, "val_acc1": _accuracy(folder, cell, place, overrides)})
        folder.say(f"  {cell} {arguments}: {candidates[-1]['val_acc1']:.2f} percent on validation images")
    best = max(candidates, key=lambda candidate: float(candidate["val_acc1"]))
    return {
        "arguments": best["arguments"],
        "candidates": candidates,
        "val_size": settings.val_size,
        "overrides": {"model": {"strategies": folder.benchmark.chosen(method, best["arguments"])}},
    }


def _accuracy(folder: ResultsFolder, cell: Cell, place: Path, overrides: dict[str, Any]) -> float:
    kept = place / "accuracy.json"
    if kept.is_file():
        return float(json.loads(kept.read_text(encoding="utf-8")))
    weights = folder.teachers.weights(str(cell.teacher))
    outcome = train_alone(Job(cell, folder.benchmark.words(cell, weights, place, overrides), place))
    accuracy = 0.0
    if outcome.status == "done":
        accuracy = RunFolder(place).rows()[-1]["val/acc1"]
    write_text(kept, json.dumps(accuracy))
    remove(place / "checkpoints")
    return accuracy
