"""What lies in a results folder: every planned cell and what became of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from ickd_pl.benchmark.records import CellResult, benchmark_file, read_cell
from ickd_pl.errors import UserError


@dataclass(frozen=True)
class Run:
    """A cell of the table, whether something lies there or not.

    ``state`` is that of its result (done, failed, refused), else ``unfinished`` (a run began) or ``missing``.
    ``planned`` is False for a result that benchmark.yaml does not ask for: shown, but in no mean.
    """

    folder: Path
    pair: str | None  # None: a teacher's own training
    teacher: str
    student: str | None
    method: str | None
    seed: int | None  # None: a teacher that is not there, in any seed
    state: str
    reason: str
    result: CellResult | None
    planned: bool = True


@dataclass(frozen=True)
class Pair:
    """A column of the table."""

    name: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Results:
    """A benchmark and what was done of it."""

    folder: Path
    name: str
    settings: dict[str, Any]
    pairs: list[Pair]
    methods: list[str]
    seeds: list[int]
    runs: list[Run]

    def of(self, pair: str, method: str) -> list[Run]:
        """The planned runs of a student's cell, one a seed."""
        return [r for r in self.runs if r.planned and r.pair == pair and r.method == method]

    def teachers(self, network: str) -> list[Run]:
        """The runs that trained a teacher."""
        return [r for r in self.runs if r.pair is None and r.teacher == network]

    @property
    def done(self) -> list[CellResult]:
        return [r.result for r in self.runs if r.state == "done" and r.result is not None]

    @property
    def epochs(self) -> int | None:
        """As the benchmark asks for."""
        trainer = self.settings.get("trainer")
        value = trainer.get("max_epochs") if isinstance(trainer, dict) else None
        return value if isinstance(value, int) else None

    @property
    def data(self) -> str:
        """The data set's name: as the cells say, else its class in small letters."""
        named = [c.data for c in self.done if c.data]
        place = self.settings.get("data")
        return named[0] if named else str(place.get("class_path", "") if isinstance(place, dict) else "").lower()

    @property
    def split(self) -> str:
        return next((c.split for c in self.done if c.split), "test")


def read_results(folder: Path) -> Results:
    """Read a results folder, complete or not.

    Raises:
        UserError: it is no results folder, or one of its files is damaged (named).
    """
    settings = benchmark_file(folder)
    found = {place: read_cell(place) for place in _places(folder)}
    pairs = [_pair(name, found, folder) for name in settings["pairs"]]
    methods, seeds = list(settings["methods"]), list(settings["seeds"])
    runs: list[Run] = []
    for network in dict.fromkeys(p.teacher for p in pairs):
        runs += _teacher_runs(folder, network, found)
    for pair in pairs:
        for method in methods:
            for seed in seeds:
                place = folder / "cells" / pair.name / method / f"seed_{seed}"
                state, reason, result = _state(place, found)
                runs.append(Run(place, pair.name, pair.teacher, pair.student, method, seed, state, reason, result))
    known = {r.folder for r in runs}
    runs += [_unplanned(place, content) for place, content in found.items() if place not in known]
    return Results(folder, str(settings.get("name") or folder.name), settings, pairs, methods, seeds, runs)


def predictions(cell: CellResult) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]] | None:
    """Which test images a cell got right (N,), and the labels (N,); None where the file is missing.

    Raises:
        UserError: the file is damaged, or is of another number of images than the result.
    """
    path = cell.folder / "predictions.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            predicted, label = content["predicted"], content["label"]
    except Exception as error:  # zip, header, pickle, missing array: numpy raises many kinds
        raise _damaged(path, " ".join(str(error).split())) from error
    if predicted.ndim != 1 or predicted.shape != label.shape or len(label) != cell.num_test:
        raise _damaged(path, f"{predicted.shape} predictions, {label.shape} labels, {cell.num_test} images in the test")
    return predicted == label, label


def _places(folder: Path) -> Iterator[Path]:
    """Folders with a result, at the depth of cells: what a cell keeps further down is its own affair."""
    for path in sorted(folder.glob("cells/*/*/seed_*/result.json")):
        if re.fullmatch(r"seed_\d+", path.parent.name):
            yield path.parent


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}): move {path.parent} away, and `bench run` makes its cell again")


def _pair(name: str, found: dict[Path, tuple[dict[str, Any], CellResult]], folder: Path) -> Pair:
    """The two networks of a pair: of its configuration, else of a result, else unknown."""
    from ickd_pl.runs.configs import config_root

    path = config_root() / "pairs" / f"{name}.yaml"
    if path.is_file():
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        return Pair(name, model["teacher"], model["student"])
    for place, (cell, _) in found.items():
        if place.relative_to(folder).parts[1] == name:
            return Pair(name, cell["teacher"], str(cell.get("student")))
    return Pair(name, f"teacher of {name}", name)


def _state(place: Path, found: dict[Path, tuple[dict[str, Any], CellResult]]) -> tuple[str, str, CellResult | None]:
    if place in found:
        result = found[place][1]
        return result.status, result.reason or "", result
    if (place / "metrics.csv").is_file() or (place / "checkpoints").is_dir():
        return "unfinished", "began and has no result: still running, or stopped", None
    return "missing", "not run yet", None


def _teacher_runs(folder: Path, network: str, found: dict[Path, tuple[dict[str, Any], CellResult]]) -> list[Run]:
    root = folder / "cells" / "teachers" / network
    runs = []
    for place in sorted(root.glob("seed_*")):
        if re.fullmatch(r"seed_\d+", place.name):
            state, reason, result = _state(place, found)
            runs.append(Run(place, None, network, None, None, int(place.name[5:]), state, reason, result))
    nothing = Run(root, None, network, None, None, None, "missing", "no cell here: not trained yet", None)
    return runs or [nothing]


def _unplanned(place: Path, content: tuple[dict[str, Any], CellResult]) -> Run:
    cell, result = content
    reason = f"not in benchmark.yaml, in no mean{': ' if result.reason else ''}{result.reason or ''}"
    pair = cell["pair"] if cell.get("kind") != "teacher" else None
    method, student = cell.get("method"), cell.get("student")
    return Run(
        place, pair, cell["teacher"], student, method, cell["seed"], result.status, reason, result, planned=False
    )
