"""A benchmark's results folder: where its cells lie, who is at work in them, and what each of them depends on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.fingerprint import Identity, code_hash, data_hash, method_hash
from ickd_pl.benchmark.locks import locked
from ickd_pl.benchmark.plan import Benchmark, Cell, Group
from ickd_pl.benchmark.records import read_result, write_begun
from ickd_pl.benchmark.teachers import Teachers
from ickd_pl.data import TensorDataModule
from ickd_pl.errors import UserError
from ickd_pl.strategies import from_spec

Say = Callable[[str], None]


class ResultsFolder:
    """The results folder of a benchmark.

    Args:
        benchmark: whose results it holds.
        path: the folder.
        say: takes a line on what is being done.
    """

    def __init__(self, benchmark: Benchmark, path: Path, say: Say) -> None:
        self.benchmark, self.path, self.say = benchmark, path, say
        self.teachers = Teachers(benchmark, path, say)
        self._hashes: dict[str, str] = {}

    # -- what is there -------------------------------------------------------------------------------------------

    def pending(self, group: Group) -> list[Cell]:
        """The cells of a group that have no result yet."""
        return [cell for cell in group.cells if read_result(self.place(cell)) is None]

    def place(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / cell.path

    def choices_of(self, cell: Cell) -> Path:
        """Where the runs lie among which a cell's arguments are chosen."""
        return self.path / "choices" / cell.path

    def begun(self) -> bool:
        """Whether anything was trained here."""
        names = ("result.json", "identity.json")
        return any(True for top in ("cells", "choices") for name in names for _ in self.path.glob(f"{top}/**/{name}"))

    def lock(self, group: Group, wait: bool) -> AbstractContextManager[bool]:
        """The lock on a group, see :func:`~ickd_pl.benchmark.locks.locked`."""

        def tell(holder: str) -> None:
            self.say(f"{group}: another process is at it, waiting ({holder})")

        return locked(self.path / group.path, tell if wait else None)

    # -- what a cell is ------------------------------------------------------------------------------------------

    def words(self, cell: Cell, overrides: dict[str, Any] | None = None) -> list[str]:
        """The words of the ``fit`` that is a cell, with its teacher's weights."""
        weights = self.teachers.weights(cell.teacher) if cell.teacher else None
        return self.benchmark.words(cell, weights, self.place(cell), overrides or {})

    def data_hash(self, cell: Cell) -> str:
        """The hash of the data that a cell sees.

        Raises:
            UserError: a data module of the user's own yields other images every time.
        """
        if cell.kind not in self._hashes:
            data = self.benchmark.data(cell.kind)
            found = self._hashes[cell.kind] = data_hash(data)
            # What comes in any order, or with draws of its own, would be refused as other data at the next start.
            if not isinstance(data, TensorDataModule) and data_hash(self.benchmark.data(cell.kind)) != found:
                raise UserError(
                    f"data module {type(data).__name__} yields other batches each time, under a fixed seed too, and a "
                    "benchmark compares runs on the same data: draw by torch's, numpy's or Python's global random "
                    "numbers, or by a generator with a fixed seed"
                )
        return self._hashes[cell.kind]

    def code(self, cell: Cell) -> tuple[str, str]:
        """The hashes of the code that trains a cell: what all cells share, and its own methods."""
        specs = self.benchmark.strategies(cell.method) if cell.method else []
        return code_hash(), method_hash(*(type(from_spec(spec)) for spec in specs))

    def identity(self, cell: Cell) -> Identity:
        """What a cell depends on now."""
        teacher = self.teachers.hash_of(cell.teacher) if cell.teacher else None
        shared, methods = self.code(cell)
        return Identity(shared, self.data_hash(cell), teacher, methods)

    def begin(self, cell: Cell, place: Path) -> None:
        """Note in a folder what the run in it depends on."""
        write_begun(place, self.identity(cell), self.benchmark.recipe(cell))
