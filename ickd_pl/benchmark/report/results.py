"""The content of a results folder: every planned cell and its state."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ickd_pl.benchmark.records import CellResult, benchmark_file, damaged, read_result
from ickd_pl.plain import open_regular, read_yaml

MOST_PREDICTIONS = 2**28
"""Bytes of predictions.npz unpacked: 16 million test images."""


@dataclass(frozen=True)
class Run:
    """A cell of the table, whether it has files or not.

    ``state`` is that of its result (done, failed, refused), else ``unfinished`` (a run began) or ``missing``.
    ``planned`` is False for a result that benchmark.yaml does not ask for: shown, but in no mean.
    """

    folder: Path
    pair: str | None  # None: a teacher's own training
    teacher: str
    student: str | None
    method: str | None
    seed: int | None  # None: a missing teacher, whatever its seed
    state: str
    reason: str
    result: CellResult | None
    planned: bool = True

    @property
    def name(self) -> str:
        """``<pair>/<method>/seed_<n>``."""
        return "/".join(self.folder.parts[-3:])

    @property
    def done(self) -> CellResult | None:
        """The result of a run that is done; else None."""
        return self.result if self.state == "done" else None


class Trait(NamedTuple):
    """A property that runs should share: its name in a sentence and in a table, and the value of each run."""

    name: str
    title: str
    values: list[str | None]


@dataclass(frozen=True)
class Pair:
    """A column of the table."""

    name: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Results:
    """A benchmark and the state of its cells."""

    folder: Path
    name: str
    settings: dict[str, Any]
    pairs: list[Pair]
    methods: list[str]
    seeds: list[int]
    runs: list[Run]

    def of(self, pair: str, method: str) -> list[Run]:
        """The planned runs of a method on a pair, one per seed."""
        return [r for r in self.runs if r.planned and r.pair == pair and r.method == method]

    def teachers(self, network: str) -> list[Run]:
        """The runs that trained a teacher."""
        return [r for r in self.runs if r.pair is None and r.teacher == network]

    @property
    def done(self) -> list[CellResult]:
        return [r.done for r in self.runs if r.done is not None]

    def setting(self, *keys: str) -> Any:
        """A setting of benchmark.yaml; None if it is not set."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def epochs(self) -> int | None:
        """Epochs that the benchmark asks for."""
        value = self.setting("trainer", "max_epochs")
        return value if isinstance(value, int) else None

    @property
    def data(self) -> str:
        """The data set's name: from the results, else its class in lower case."""
        named = [c.data for c in self.done if c.data]
        return named[0] if named else str(self.setting("data", "class_path") or "").lower()

    @property
    def split(self) -> str:
        return next((c.split for c in self.done if c.split), "test")

    def traits(self, runs: Iterable[Run]) -> list[Trait]:
        """Versions, devices and hashes of the runs that have a result."""
        found = [(r, r.result) for r in runs if r.result is not None]
        versions = dict.fromkeys(name for _, c in found for name in c.versions)
        taught = [(r.teacher, c.teacher_hash) for r, c in found if r.pair is not None and c.teacher_hash]
        return [
            Trait("device", "device", [c.device for _, c in found]),
            Trait("precision", "precision", [c.precision for _, c in found]),
            Trait("code", "package files (hash)", [c.code_hash for _, c in found]),
            Trait("data", "data (hash)", [c.data_hash for _, c in found]),
            *(Trait(f"version of {v}", v, [c.versions.get(v) for _, c in found]) for v in versions),
            *(
                Trait(f"teacher {network}", f"teacher {network} (hash)", [h for t, h in taught if t == network])
                for network in dict.fromkeys(p.teacher for p in self.pairs)
            ),
        ]


def read_results(folder: Path) -> Results:
    """Read a results folder, complete or not.

    Raises:
        UserError: it is not a results folder, or one of its files is damaged (named).
    """
    settings = benchmark_file(folder)
    found = {path: result for path in _cell_folders(folder) if (result := read_result(path))}
    pairs = [_pair(name, found, folder) for name in settings["pairs"]]
    methods, seeds = list(settings["methods"]), list(settings["seeds"])
    runs: list[Run] = []
    for network in dict.fromkeys(p.teacher for p in pairs):
        runs += _teacher_runs(folder, network, found)
    for pair in pairs:
        for method in methods:
            for seed in seeds:
                path = folder / "cells" / pair.name / method / f"seed_{seed}"
                state, reason, result = _state(path, found)
                runs.append(Run(path, pair.name, pair.teacher, pair.student, method, seed, state, reason, result))
    known = {r.folder for r in runs}
    runs += [_unplanned(path, result) for path, result in found.items() if path not in known]
    return Results(folder, str(settings.get("name") or folder.name), settings, pairs, methods, seeds, runs)


def predictions(run: Run) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]] | None:
    """Which test images a finished run classified correctly (N,), and the labels (N,); None if the file is missing.

    Raises:
        UserError: the file is damaged, or is of another number of images than the result.
    """
    path = run.folder / "predictions.npz"
    if not path.is_file():
        return None
    try:
        with open_regular(path) as file:
            if sum(info.file_size for info in zipfile.ZipFile(file).infolist()) > MOST_PREDICTIONS:
                raise ValueError(f"more than {MOST_PREDICTIONS:,} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as content:
                predicted, label = content["predicted"], content["label"]
        if predicted.dtype.kind not in "iu" or label.dtype.kind not in "iu":
            raise ValueError(f"{predicted.dtype} and {label.dtype}, expected whole numbers")
    except Exception as error:  # zip, header, pickle, missing array: numpy raises many kinds
        raise damaged(path, error) from error
    num_test = run.result.num_test if run.result is not None else None
    if predicted.ndim != 1 or predicted.shape != label.shape or len(label) != num_test:
        raise damaged(path, f"{predicted.shape} predictions, {label.shape} labels, {num_test} images in the test")
    return predicted == label, label


def _cell_folders(folder: Path) -> Iterator[Path]:
    """Folders with a result, at the depth of cells only."""
    for path in sorted(folder.glob("cells/*/*/seed_*/result.json")):
        if re.fullmatch(r"seed_\d+", path.parent.name):
            yield path.parent


def _pair(name: str, found: dict[Path, CellResult], folder: Path) -> Pair:
    """The two networks of a pair: from its configuration, else from a result, else unknown."""
    from ickd_pl.runs.configs import config_root

    shipped = {path.stem: path for path in (config_root() / "pairs").glob("*.yaml")}
    if name in shipped:
        model = read_yaml(shipped[name])["model"]
        return Pair(name, model["teacher"], model["student"])
    for path, result in found.items():
        if path.relative_to(folder).parts[1] == name:
            return Pair(name, result.cell.teacher, str(result.cell.student))
    return Pair(name, f"teacher of {name}", name)


def _state(path: Path, found: dict[Path, CellResult]) -> tuple[str, str, CellResult | None]:
    if path in found:
        result = found[path]
        return result.status, result.reason or "", result
    if (path / "metrics.csv").is_file() or (path / "checkpoints").is_dir():
        return "unfinished", "began and has no result: still running, or stopped", None
    return "missing", "not run yet", None


def _teacher_runs(folder: Path, network: str, found: dict[Path, CellResult]) -> list[Run]:
    root = folder / "cells" / "teachers" / network
    runs = []
    for path in sorted(root.glob("seed_*")):
        if re.fullmatch(r"seed_\d+", path.name):
            state, reason, result = _state(path, found)
            runs.append(Run(path, None, network, None, None, int(path.name[5:]), state, reason, result))
    nothing = Run(root, None, network, None, None, None, "missing", "no cell here: not trained yet", None)
    return runs or [nothing]


def _unplanned(path: Path, result: CellResult) -> Run:
    cell = result.cell
    reason = f"not in benchmark.yaml, in no mean{': ' if result.reason else ''}{result.reason or ''}"
    return Run(
        *(path, cell.pair if cell.kind == "student" else None, cell.teacher, cell.student, cell.method, cell.seed),
        *(result.status, reason, result, False),
    )
