"""result.json: what a cell found, and all that it depends on. Written once, when the cell is done."""

from __future__ import annotations

import csv
import itertools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml

from ickd_pl.benchmark.cells import Outcome, predict
from ickd_pl.benchmark.identity import device_name, versions
from ickd_pl.benchmark.plan import Benchmark, Cell, merge
from ickd_pl.errors import UserError
from ickd_pl.runtime.atomic import write_text
from ickd_pl.runtime.configs import find_configs
from ickd_pl.runtime.run_folder import RunFolder, differing, flat

if TYPE_CHECKING:
    from ickd_pl.benchmark.runner import Runner


class Identity(NamedTuple):
    """What results must share to stand in one table. The teacher's is None for a teacher itself."""

    code_hash: str
    data_hash: str
    teacher_hash: str | None


def read_result(place: Path) -> dict[str, Any] | None:
    """A cell's result, None where there is none yet.

    Raises:
        UserError: the file is damaged.
    """
    path = place / "result.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): move {place} away to do the cell again") from error
    missing = [key for key in ("status", "code_hash", "data_hash", "teacher_hash", "recipe") if key not in content]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: move {place} away to do the cell again")
    return dict(content)


def write_result(place: Path, result: dict[str, Any]) -> None:
    """Write result.json in one step."""
    write_text(place / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def recipe_of(benchmark: Benchmark, cell: Cell) -> dict[str, Any]:
    """The settings that make the cell, from all its files, without where things lie and how they are shown."""
    with tempfile.TemporaryDirectory() as scratch:
        words = find_configs(benchmark.words(cell, None, Path(scratch), {}))
        recipe: dict[str, Any] = {}
        for word, following in itertools.pairwise(words):
            if word == "--config":
                recipe = merge(recipe, yaml.safe_load(Path(following).read_text(encoding="utf-8")))
    recipe.get("model", {}).pop("teacher_weights", None)
    recipe["seed_everything"] = cell.seed
    choices = benchmark.settings["choices"].get(cell.method)
    return {**recipe, **({"choices": choices, "val_size": benchmark.settings["val_size"]} if choices else {})}


def differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, as ``name: there -> now``; how a run is shown does not count."""
    return differing(flat(there), flat(now))


def make_result(
    runner: Runner, cell: Cell, outcome: Outcome, identity: Identity, recipe: dict[str, Any], given: Path | None
) -> dict[str, Any]:
    """All that is known of a cell that is done, failed or refused.

    Args:
        runner: whose cell it is.
        cell: the cell.
        outcome: of its training.
        identity: what it depends on.
        recipe: its settings.
        given: the weights of a teacher that was not trained here.
    """
    place = runner.folder / "cells" / cell.path
    result: dict[str, Any] = {
        "cell": {
            "kind": cell.kind,
            "pair": cell.pair,
            "teacher": cell.teacher or cell.network,
            "student": None if cell.kind == "teacher" else cell.network,
            "method": cell.method,
            "seed": cell.seed,
        },
        "status": outcome.status,
        "reason": outcome.reason,
        **dict.fromkeys(("data", "split", "num_test", "acc1_last", "acc1_best", "best_epoch", "acc5_last")),
        **dict.fromkeys(("train_acc1_last", "epochs", "parameters", "seconds", "images_per_second", "config")),
        "packed_with": outcome.packed_with,
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "precision": str(recipe.get("trainer", {}).get("precision", "32-true")),
        "versions": versions(),
        "recipe": recipe,
        **identity._asdict(),
    }
    data = runner._data(cell)
    data.prepare_data()
    result["data"] = getattr(data, "name", type(data).__name__.lower())
    if outcome.status != "done":
        return result
    if given is not None:
        return {**result, **runner.teachers.measured(cell, given, data, place), "weights": str(given)}
    net, _, labels = predict(RunFolder(place).last, data, place)
    result["num_test"], result["parameters"] = len(labels), sum(p.numel() for p in net.parameters())
    if outcome.cli is not None:
        result["config"] = outcome.cli.settings
    if cell.kind == "teacher":
        result["teacher_hash"] = runner.teachers.hash_of(cell.network)
    return {**result, **_from_metrics(RunFolder(place).metrics, int(data.num_train))}


def _from_metrics(path: Path, num_train: int) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
    main = [row for row in rows if row["epoch"] >= 1]
    split = "val" if any("val/acc1" in row for row in main) else "test"
    evaluated = [row for row in main if f"{split}/acc1" in row]
    if not evaluated:
        raise UserError(f"{path} has no evaluated epoch: leave trainer.check_val_every_n_epoch and its limits alone")
    last, best = evaluated[-1], max(evaluated, key=lambda row: row[f"{split}/acc1"])
    seconds = sum(row["seconds"] for row in rows)
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
