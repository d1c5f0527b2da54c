"""Creates a cell's result: its accuracies and all they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ickd_pl.benchmark.cells import Outcome, predict
from ickd_pl.benchmark.fingerprint import Identity
from ickd_pl.benchmark.folder import ResultsFolder
from ickd_pl.benchmark.plan import Cell
from ickd_pl.benchmark.records import FORM, CellKey, CellResult
from ickd_pl.errors import UserError
from ickd_pl.runs.data_options import data_name
from ickd_pl.runs.machine import pieces_of, versions, where
from ickd_pl.runs.run_folder import RunFolder
from ickd_pl.training.speed import can_compile
from ickd_pl.weights import load_student
from ickd_pl.weights.checkpoint import read_checkpoint


def make_result(
    folder: ResultsFolder,
    cell: Cell,
    outcome: Outcome,
    identity: Identity,
    recipe: dict[str, Any],
    teacher_file: Path | None,
) -> CellResult:
    """The result of a cell that is done, failed or refused.

    Args:
        folder: the results folder.
        cell: the cell.
        outcome: how its training ended.
        identity: what the cell depends on.
        recipe: the cell's settings.
        teacher_file: weights of a teacher that was not trained by this benchmark, or None.
    """
    data = folder.benchmark.data(cell.kind)
    data.prepare_data()
    known: dict[str, Any] = {"status": outcome.status, "reason": outcome.reason, "versions": versions()}
    known |= identity._asdict()
    if outcome.status == "done":
        known |= _measured(folder, cell, outcome, data, recipe.get("trainer", {}), teacher_file)
    return CellResult(
        form=FORM,
        cell=CellKey(
            kind="teacher" if cell.kind == "teacher" else "student",
            pair=cell.pair,
            teacher=cell.teacher or cell.network,
            student=None if cell.kind == "teacher" else cell.network,
            method=cell.method,
            seed=cell.seed,
        ),
        data=data_name(data),
        packed_with=outcome.packed_with,
        recipe=recipe,
        **known,
    )


def _measured(
    folder: ResultsFolder, cell: Cell, outcome: Outcome, data: Any, settings: dict[str, Any], teacher_file: Path | None
) -> dict[str, Any]:
    """The fields that only a finished cell has."""
    path = folder.cell_folder(cell)
    if teacher_file is not None:
        return {**folder.teachers.measured(cell, teacher_file, data, path, settings), "weights": str(teacher_file)}
    net = load_student(RunFolder(path).last)
    predicted, labels, trainer = predict(net, data, path, settings)
    found = {
        "num_test": len(labels),
        "parameters": sum(p.numel() for p in net.parameters()),
        "config": outcome.cli.settings if outcome.cli is not None else None,
        **where(trainer),
        **where_trained(RunFolder(path)),
        **_from_metrics(RunFolder(path), int(data.num_train)),
    }
    asked = outcome.cli is not None and outcome.cli.settings["model"]["compile"]
    if asked and not can_compile(trainer.strategy.root_device.type):
        found["device"] += ", not compiled"
    if found["split"] == "val":
        # A custom data module evaluates epochs on a validation split, but results are for the test images.
        found |= dict.fromkeys(("acc1_best", "best_epoch", "acc5_last"))
        found |= {"split": "test", "acc1_last": 100 * float((predicted == labels).mean())}
    if cell.kind == "teacher":
        found["teacher_hash"] = folder.teachers.file_hash(cell.network)
    return found


def where_trained(run: RunFolder) -> dict[str, Any]:
    """Device, precision and versions of the last epoch, and all pieces of a run that was continued elsewhere."""
    pieces = pieces_of(read_checkpoint(run.last).record)
    if not pieces:  # trained by an older version
        return {}
    last, whole = pieces[-1], len(pieces) == 1 and pieces[0].first <= 1
    found = {"device": last.device, "precision": last.precision, "versions": last.versions}
    return {**found, "pieces": [] if whole else pieces}


def _from_metrics(run: RunFolder, num_train: int) -> dict[str, Any]:
    rows = run.rows()
    main = [row for row in rows if row["epoch"] >= 1]
    split = "val" if any("val/acc1" in row for row in main) else "test"
    evaluated = [row for row in main if f"{split}/acc1" in row]
    if not evaluated:
        raise UserError(
            f"{run.metrics} has no evaluated epoch: remove trainer.check_val_every_n_epoch and limit_* settings"
        )
    last, best = evaluated[-1], max(evaluated, key=lambda row: row[f"{split}/acc1"])
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    return {
        "split": split,
        "acc1_last": last[f"{split}/acc1"],
        "acc1_best": best[f"{split}/acc1"],
        "best_epoch": int(best["epoch"]),
        "acc5_last": last.get(f"{split}/acc5"),
        "train_acc1_last": last.get("train/acc1"),
        "epochs": len(main),
        "seconds": round(seconds, 3),
        "images_per_second": round(num_train * len(rows) / seconds, 1) if seconds else None,
    }
