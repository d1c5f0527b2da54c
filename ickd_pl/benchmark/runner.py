"""Runs a benchmark: skips finished cells, resumes unfinished ones, refuses to mix results that are not comparable."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock

from ickd_pl.benchmark.cells import Job, Outcome, build, quietly, remove, train_alone, train_pack
from ickd_pl.benchmark.choose import choose
from ickd_pl.benchmark.comparable import check_all, check_same_benchmark, mixed
from ickd_pl.benchmark.folder import Log, ResultsFolder
from ickd_pl.benchmark.plan import Benchmark, Cell, Group, merge, shard_of
from ickd_pl.benchmark.records import benchmark_file, write_result
from ickd_pl.benchmark.result import make_result
from ickd_pl.data import TensorDataModule
from ickd_pl.errors import UserError
from ickd_pl.files import write_text
from ickd_pl.runs.data_options import data_module
from ickd_pl.runs.pack_folder import members_of, previous_of
from ickd_pl.runs.signals import raise_if_stopped
from ickd_pl.strategies import from_spec


class Skipped(NamedTuple):
    """Groups that were skipped: another process is running them, or their teacher is unusable (with the reason)."""

    busy: list[str]
    no_teacher: list[str]


class Runner:
    """One call of ``bench run``.

    Args:
        benchmark: to run.
        folder: the results folder.
        shard: (i, n): the i-th of n parts, counted from 1.
        accept_code: allow results of different code; the report marks them.
        log: called with each line of progress.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        folder: Path,
        shard: tuple[int, int] = (1, 1),
        accept_code: bool = False,
        log: Log = print,
    ) -> None:
        self.benchmark, self.shard = benchmark, shard
        self.accept_code, self.log = accept_code, log
        self.folder = ResultsFolder(benchmark, folder, log)
        self.teachers = self.folder.teachers

    # -- all cells -----------------------------------------------------------------------------------------------

    def run(self) -> Skipped:
        """Run this shard's cells.

        Returns:
            The groups that were skipped.

        Raises:
            UserError: invalid settings, the folder of another benchmark, stored results of different code, data,
                settings or teachers, or an error in a cell.
        """
        self._try_settings()
        self._claim()
        groups = shard_of(self.benchmark.groups, self.shard)
        skipped = Skipped([], [])
        for number, group in enumerate(groups, 1):
            raise_if_stopped()
            if not self.folder.pending(group):
                continue
            teacher = group.cells[0].kind == "teacher"
            if not teacher and (fault := self.teachers.fault(str(group.cells[0].teacher))):
                self.log(f"[{number}/{len(groups)}] {group}: skipped, {fault}")
                skipped.no_teacher.append(f"{group}: {fault}")
                continue
            with self.folder.lock(group, wait=teacher) as acquired:
                if not acquired:
                    self.log(f"[{number}/{len(groups)}] {group}: another process is running it, skipped")
                    skipped.busy.append(str(group))
                elif self.folder.pending(group):  # otherwise another process has finished it meanwhile
                    check_all(self.folder, self.accept_code)  # other processes may have started since
                    self.log(f"[{number}/{len(groups)}] {group}")
                    with quietly():
                        self._run_group(group)
        return skipped

    def _try_settings(self) -> None:
        """Build one teacher and one student before the folder is touched, so that invalid settings fail early."""
        for cell in self.benchmark.cells:
            self.folder.code(cell)  # hashed now: this process trains with the code as of its start
        kinds = {cell.kind: cell for cell in reversed(self.benchmark.cells)}
        if self.teachers.is_external(kinds["teacher"]):
            kinds.pop("teacher")
        with tempfile.TemporaryDirectory() as scratch, quietly():
            for cell in kinds.values():
                try:
                    path = Path(scratch) / str(cell)
                    build(Job(cell, self.benchmark.args(cell, None, Path(scratch), {}), path))
                    self.folder.data_hash(cell)
                except UserError as error:
                    raise UserError(f"benchmark {self.benchmark.settings.name}, cell {cell}: {error}") from error
        self._check_needs()
        if self.benchmark.settings.choices:
            size = {"init_args": {"val_size": self.benchmark.settings.val_size}}
            try:
                data_module(merge(self.benchmark.settings.data, size))
            except UserError as error:
                why = "choices are made on a validation split, so the data module must take val_size"
                raise UserError(f"benchmark {self.benchmark.settings.name}: {why}; {error}") from error

    def _check_needs(self) -> None:
        """Check that a custom data module has what the methods need, before a teacher is trained."""
        data = self.benchmark.data("student")
        if isinstance(data, TensorDataModule):
            return  # has labels and indices
        data.prepare_data()
        data.setup("fit")
        has_labels, has_index = hasattr(data, "train_labels"), len(next(iter(data.train_dataloader()))) > 2
        for method in self.benchmark.settings.methods:
            for strategy in map(from_spec, self.benchmark.strategies(method)):
                lacking = ["train_labels, the labels of all training images"] * (strategy.needs_labels > has_labels)
                lacking += ["batches of (image, label, index)"] * (strategy.needs_index > has_index)
                if lacking:
                    raise UserError(
                        f"benchmark {self.benchmark.settings.name}: {method} needs {' and '.join(lacking)}, which data "
                        f"module {type(data).__name__} lacks: add that, or remove {method} from methods"
                    )

    def _claim(self) -> None:
        """Write benchmark.yaml into the folder, or check that it belongs to this benchmark."""
        path = self.folder.path / "benchmark.yaml"
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder.path, os.W_OK):
                raise PermissionError(13, "no permission to write")
        except OSError as error:
            raise UserError(
                f"cannot write into {self.folder.path} ({error.strerror}): set --output to another folder"
            ) from error
        with FileLock(self.folder.path / ".benchmark.lock"):
            if path.is_file():
                check_same_benchmark(self.folder, benchmark_file(self.folder.path))
            elif unknown := sorted(p.name for p in self.folder.path.iterdir() if not _is_own(p.name)):
                raise UserError(
                    f"{self.folder.path} is not empty and does not contain a benchmark ({unknown[0]}, ...): "
                    "set --output to a new folder"
                )
            check_all(self.folder, self.accept_code, settings_too=True)
            write_text(path, yaml.safe_dump(asdict(self.benchmark.settings), sort_keys=False))

    # -- one group ---------------------------------------------------------------------------------------------------

    def _run_group(self, group: Group) -> None:
        if group.cells[0].kind == "teacher":
            self._run_teacher(group.cells[0])
        elif group.packed:
            self._run_pack(group)
        else:
            cell = group.cells[0]
            chosen = choose(self.folder, cell) if cell.method in self.benchmark.settings.choices else None
            overrides = chosen["overrides"] if chosen else None
            self.folder.mark_started(cell, self.folder.cell_folder(cell))
            outcome = train_alone(Job(cell, self.folder.args(cell, overrides), self.folder.cell_folder(cell)))
            self._finish(cell, outcome, chosen)

    def _run_pack(self, group: Group) -> None:
        """Finish an interrupted pack with its original members; methods added since form another pack."""
        path = self.folder.path / group.path / "pack.ckpt"
        pending = self.folder.pending(group)
        members = members_of(path)
        old = [cell for name in members for cell in group.cells if cell.method == name]
        if not any(cell in pending for cell in old):
            old = []  # killed after the last result was written
        for cells in (old, [cell for cell in pending if cell not in old]):
            if not cells:
                continue
            for cell in cells:
                if cell in pending:
                    self.folder.mark_started(cell, self.folder.cell_folder(cell))
            jobs = [Job(cell, self.folder.args(cell), self.folder.cell_folder(cell)) for cell in cells]
            outcomes = train_pack(jobs, path, fused=self.benchmark.settings.fused)
            for cell, outcome in zip(cells, outcomes, strict=True):
                if cell in pending:
                    self._finish(cell, outcome, None)
            remove(path)
            remove(previous_of(path))

    def _run_teacher(self, cell: Cell) -> None:
        teacher_file = self.teachers.get(cell)
        self.folder.mark_started(cell, self.folder.cell_folder(cell))
        outcome = (
            Outcome("done", None, None, [])
            if teacher_file
            else train_alone(Job(cell, self.folder.args(cell), self.folder.cell_folder(cell)))
        )
        self._finish(cell, outcome, None, teacher_file)

    def _finish(self, cell: Cell, outcome: Outcome, choice: Any, teacher_file: Path | None = None) -> None:
        path = self.folder.cell_folder(cell)
        identity, recipe = self.folder.identity(cell), self.benchmark.recipe(cell)
        result = make_result(self.folder, cell, outcome, identity, recipe, teacher_file)
        chosen = choice and {k: v for k, v in choice.items() if k != "overrides"}
        result = replace(result, accepted_code=mixed(self.folder, cell), chosen_on_validation=chosen)
        write_result(path, result)
        accuracy = "" if result.acc1_last is None else f" {result.acc1_last:.2f} percent"
        self.log(f"  {cell}: {outcome.status}{accuracy}{'' if outcome.reason is None else ': ' + outcome.reason}")


def _is_own(name: str) -> bool:
    """Whether a results folder may contain this besides benchmark.yaml: hidden files, and what `bench` writes."""
    known = ("cells", "packs", "choices", "commands", "alone")
    return name in known or name.startswith((".", "report."))
