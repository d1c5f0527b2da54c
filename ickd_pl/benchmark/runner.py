"""Do the cells of a benchmark: skip what is done, continue what is half done, refuse to mix what differs."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock

from ickd_pl.benchmark.cells import Job, Outcome, build, members_of, quietly, remove, train_alone, train_pack
from ickd_pl.benchmark.choose import choose
from ickd_pl.benchmark.comparable import check_all, check_same_benchmark, mixed
from ickd_pl.benchmark.folder import ResultsFolder, Say
from ickd_pl.benchmark.plan import Benchmark, Cell, Group, merge, shard_of
from ickd_pl.benchmark.records import benchmark_file, write_result
from ickd_pl.benchmark.result import make_result
from ickd_pl.errors import UserError
from ickd_pl.files import write_text
from ickd_pl.runs.data_options import data_module
from ickd_pl.runs.pack_folder import previous_of


class Left(NamedTuple):
    """Groups that a run has left: to other processes, or because their teacher is no good (each with the reason)."""

    busy: list[str]
    untaught: list[str]


class Runner:
    """One call of ``bench run``.

    Args:
        benchmark: what is to be done.
        folder: the results folder.
        shard: (i, n): the i-th of n parts, from 1.
        accept_code: mix results of different code; they are marked.
        say: takes a line on what is being done.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        folder: Path,
        shard: tuple[int, int] = (1, 1),
        accept_code: bool = False,
        say: Say = print,
    ) -> None:
        self.benchmark, self.shard = benchmark, shard
        self.accept_code, self.say = accept_code, say
        self.folder = ResultsFolder(benchmark, folder, say)
        self.teachers = self.folder.teachers

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self) -> Left:
        """Do this shard's cells.

        Returns:
            The groups that were left.

        Raises:
            UserError: settings that are not accepted, another benchmark's folder, results of other code, data, settings
                or teachers; whatever a cell raises.
        """
        self._try_settings()
        self._claim()
        groups = shard_of(self.benchmark.groups, self.shard)
        left = Left([], [])
        for number, group in enumerate(groups, 1):
            if not self.folder.pending(group):
                continue
            teacher = group.cells[0].kind == "teacher"
            if not teacher and (fault := self.teachers.fault(str(group.cells[0].teacher))):
                self.say(f"[{number}/{len(groups)}] {group}: left out, {fault}")
                left.untaught.append(f"{group}: {fault}")
                continue
            with self.folder.lock(group, wait=teacher) as mine:
                if not mine:
                    self.say(f"[{number}/{len(groups)}] {group}: another process is at it, left to that")
                    left.busy.append(str(group))
                elif self.folder.pending(group):  # else done by another process meanwhile
                    check_all(self.folder, self.accept_code)  # other processes may have begun since
                    self.say(f"[{number}/{len(groups)}] {group}")
                    with quietly():
                        self._do(group)
        return left

    def _try_settings(self) -> None:
        """Build a teacher and a student of the benchmark before the folder is touched: a mistake costs nothing yet."""
        for cell in self.benchmark.cells:
            self.folder.code(cell)  # now, for this process trains with the code as it is at its start
        kinds = {cell.kind: cell for cell in reversed(self.benchmark.cells)}
        if self.teachers.given(kinds["teacher"]):
            kinds.pop("teacher")
        with tempfile.TemporaryDirectory() as scratch, quietly():
            for cell in kinds.values():
                try:
                    place = Path(scratch) / str(cell)
                    build(Job(cell, self.benchmark.words(cell, None, Path(scratch), {}), place))
                    self.folder.data_hash(cell)
                except UserError as error:
                    raise UserError(f"benchmark {self.benchmark.settings.name}, cell {cell}: {error}") from error
        if self.benchmark.settings.choices:
            size = {"init_args": {"val_size": self.benchmark.settings.val_size}}
            try:
                data_module(merge(self.benchmark.settings.data, size))
            except UserError as error:
                why = "choices are made on a validation split, so that the data module must take val_size"
                raise UserError(f"benchmark {self.benchmark.settings.name}: {why}; {error}") from error

    def _claim(self) -> None:
        """Write benchmark.yaml into the folder, or see that it holds this very benchmark."""
        path = self.folder.path / "benchmark.yaml"
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder.path, os.W_OK):
                raise PermissionError(13, "no permission to write")
        except OSError as error:
            raise UserError(
                f"cannot write into {self.folder.path} ({error.strerror}): give --output another folder"
            ) from error
        with FileLock(self.folder.path / ".benchmark.lock"):
            if path.is_file():
                check_same_benchmark(self.folder, benchmark_file(self.folder.path))
            elif strangers := sorted(p.name for p in self.folder.path.iterdir() if not _is_own(p.name)):
                raise UserError(
                    f"{self.folder.path} is not empty and holds no benchmark ({strangers[0]}, ...): "
                    "give --output a new folder"
                )
            check_all(self.folder, self.accept_code, settings_too=True)
            write_text(path, yaml.safe_dump(asdict(self.benchmark.settings), sort_keys=False))

    # -- doing -------------------------------------------------------------------------------------------------------

    def _do(self, group: Group) -> None:
        if group.cells[0].kind == "teacher":
            self._do_teacher(group.cells[0])
        elif group.packed:
            self._do_pack(group)
        else:
            cell = group.cells[0]
            chosen = choose(self.folder, cell) if cell.method in self.benchmark.settings.choices else None
            overrides = chosen["overrides"] if chosen else None
            self.folder.begin(cell, self.folder.place(cell))
            outcome = train_alone(Job(cell, self.folder.words(cell, overrides), self.folder.place(cell)))
            self._finish(cell, outcome, chosen)

    def _do_pack(self, group: Group) -> None:
        """A pack that was stopped is finished with the members that it had; methods that came since are another."""
        path = self.folder.path / group.path / "pack.ckpt"
        pending = self.folder.pending(group)
        had = members_of(path)
        old = [cell for name in had for cell in group.cells if cell.method == name]
        if not any(cell in pending for cell in old):
            old = []  # killed after its last result
        for cells in (old, [cell for cell in pending if cell not in old]):
            if not cells:
                continue
            for cell in cells:
                if cell in pending:
                    self.folder.begin(cell, self.folder.place(cell))
            outcomes = train_pack([Job(cell, self.folder.words(cell), self.folder.place(cell)) for cell in cells], path)
            for cell, outcome in zip(cells, outcomes, strict=True):
                if cell in pending:
                    self._finish(cell, outcome, None)
            remove(path)
            remove(previous_of(path))

    def _do_teacher(self, cell: Cell) -> None:
        given = self.teachers.get(cell)
        self.folder.begin(cell, self.folder.place(cell))
        outcome = (
            Outcome("done", None, None, [])
            if given
            else train_alone(Job(cell, self.folder.words(cell), self.folder.place(cell)))
        )
        self._finish(cell, outcome, None, given)

    def _finish(self, cell: Cell, outcome: Outcome, choice: Any, given: Path | None = None) -> None:
        place = self.folder.place(cell)
        result = make_result(self.folder, cell, outcome, self.folder.identity(cell), self.benchmark.recipe(cell), given)
        chosen = choice and {k: v for k, v in choice.items() if k != "overrides"}
        result = replace(result, accepted_code=mixed(self.folder, cell), chosen_on_validation=chosen)
        write_result(place, result)
        accuracy = "" if result.acc1_last is None else f" {result.acc1_last:.2f} percent"
        self.say(f"  {cell}: {outcome.status}{accuracy}{'' if outcome.reason is None else ': ' + outcome.reason}")


def _is_own(name: str) -> bool:
    """What may lie in a results folder beside benchmark.yaml: hidden files, and what `bench` writes."""
    known = ("cells", "packs", "choices", "commands", "alone")
    return name in known or name.startswith((".", "report."))
