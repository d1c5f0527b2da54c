"""A benchmark's results folder: paths of its cells, locks, and the identity of each cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.fingerprint import Identity, code_hash, method_hash
from ickd_pl.benchmark.plan import Benchmark, Cell, Group
from ickd_pl.benchmark.records import read_result, write_started
from ickd_pl.benchmark.teachers import Teachers
from ickd_pl.data import TensorDataModule
from ickd_pl.errors import UserError
from ickd_pl.runs.lock import holder, locked
from ickd_pl.runs.signals import raise_if_stopped
from ickd_pl.strategies import from_spec
from ickd_pl.training.fingerprint import data_hash

Log = Callable[[str], None]


class ResultsFolder:
    """The results folder of a benchmark.

    Args:
        benchmark: the benchmark of these results.
        path: the folder.
        log: called with each line of progress.
    """

    def __init__(self, benchmark: Benchmark, path: Path, log: Log) -> None:
        self.benchmark, self.path, self.log = benchmark, path, log
        self.teachers = Teachers(benchmark, path, log)
        self._hashes: dict[str, str] = {}

    # -- contents -----------------------------------------------------------------------------------------------

    def pending(self, group: Group) -> list[Cell]:
        """The cells of a group that have no result yet."""
        return [cell for cell in group.cells if read_result(self.cell_folder(cell)) is None]

    def cell_folder(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / cell.path

    def choices_of(self, cell: Cell) -> Path:
        """The folder of the runs that choose a cell's arguments."""
        return self.path / "choices" / cell.path

    def has_runs(self) -> bool:
        """Whether anything was trained here."""
        names = ("result.json", "identity.json")
        return any(True for top in ("cells", "choices") for name in names for _ in self.path.glob(f"{top}/**/{name}"))

    def lock(self, group: Group, wait: bool) -> AbstractContextManager[bool]:
        """The lock on a group, see :func:`~ickd_pl.runs.lock.locked`."""

        path = self.path / group.path

        def tell(who: str) -> None:
            self.log(f"{group}: another process is running it, waiting ({who})")
            while holder(path):
                raise_if_stopped()  # by --minutes
                time.sleep(1)

        return locked(path, tell if wait else None)

    # -- cells ---------------------------------------------------------------------------------------------------

    def args(self, cell: Cell, overrides: dict[str, Any] | None = None) -> list[str]:
        """The command-line arguments of a cell's ``fit``, including its teacher's weights."""
        weights = self.teachers.weights(cell.teacher) if cell.teacher else None
        return self.benchmark.args(cell, weights, self.cell_folder(cell), overrides or {})

    def data_hash(self, cell: Cell) -> str:
        """The hash of a cell's data.

        Raises:
            UserError: a custom data module yields different images each time.
        """
        if cell.kind not in self._hashes:
            data = self.benchmark.data(cell.kind)
            found = self._hashes[cell.kind] = data_hash(data)
            # Batches in an arbitrary order, or with unseeded randomness, would differ when the benchmark resumes.
            if not isinstance(data, TensorDataModule) and data_hash(self.benchmark.data(cell.kind)) != found:
                raise UserError(
                    f"data module {type(data).__name__} yields different batches each time, even under a fixed seed, "
                    "but a benchmark compares runs on the same data: use the global random numbers of torch, numpy or "
                    "Python, or a generator with a fixed seed"
                )
        return self._hashes[cell.kind]

    def code(self, cell: Cell) -> tuple[str, str]:
        """The hashes of a cell's code: the shared code's and its methods'."""
        specs = self.benchmark.strategies(cell.method) if cell.method else []
        return code_hash(), method_hash(*(type(from_spec(spec)) for spec in specs))

    def identity(self, cell: Cell) -> Identity:
        """What a cell currently depends on."""
        teacher = self.teachers.hash_of(cell.teacher) if cell.teacher else None
        shared, methods = self.code(cell)
        return Identity(shared, self.data_hash(cell), teacher, methods)

    def mark_started(self, cell: Cell, path: Path) -> None:
        """Record in a run's folder what the run depends on."""
        write_started(path, self.identity(cell), self.benchmark.recipe(cell))
