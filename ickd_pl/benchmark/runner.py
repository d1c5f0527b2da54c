"""Do the cells of a benchmark: skip what is done, continue what is half done, refuse to mix what differs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ickd_pl.benchmark.cells import Job, Outcome, members_of, quietly, remove, train_alone, train_pack
from ickd_pl.benchmark.choose import choose
from ickd_pl.benchmark.identity import code_hash, data_hash
from ickd_pl.benchmark.plan import Benchmark, Cell, Group, merge, shard_of
from ickd_pl.benchmark.result import Identity, differences, make_result, read_result, recipe_of, write_result
from ickd_pl.benchmark.teachers import Teachers
from ickd_pl.data.build import data_module
from ickd_pl.errors import UserError
from ickd_pl.runtime.atomic import write_text

Say = Callable[[str], None]
# These may grow from one call to the next; everything else of a results folder stays as it was.
_MAY_GROW = ("pairs", "methods", "seeds")


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
        self.benchmark, self.folder, self.shard = benchmark, folder, shard
        self.accept_code, self.say = accept_code, say
        self._hashes: dict[str, str] = {}
        self.teachers = Teachers(benchmark, folder, say)

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Do this shard's cells.

        Returns:
            The groups that another process is at.

        Raises:
            UserError: another benchmark's folder, results of other code, data, settings or teachers; whatever a cell
                raises.
        """
        self._claim()
        groups = shard_of(self.benchmark.groups, self.shard)
        self._check_done([cell for group in groups for cell in group.cells])
        busy: list[str] = []
        for number, group in enumerate(groups, 1):
            if not self._pending(group):
                continue
            teacher = group.cells[0].kind == "teacher"
            with self._lock(group, wait=teacher) as mine:
                if not mine:
                    self.say(f"[{number}/{len(groups)}] {group}: another process is at it, left to that")
                    busy.append(str(group))
                elif self._pending(group):  # else done by another process meanwhile
                    self.say(f"[{number}/{len(groups)}] {group}")
                    with quietly():
                        self._do(group)
        return busy

    def _claim(self) -> None:
        """Write benchmark.yaml into the folder, or see that it holds this very benchmark."""
        path = self.folder / "benchmark.yaml"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(13, "no permission to write")
        except OSError as error:
            raise UserError(
                f"cannot write into {self.folder} ({error.strerror}): give --output another folder"
            ) from error
        with FileLock(self.folder / ".benchmark.lock"):
            if not path.is_file():
                strangers = [p.name for p in self.folder.iterdir() if p.name not in (".benchmark.lock", "commands")]
                if strangers:
                    raise UserError(
                        f"{self.folder} is not empty and holds no benchmark ({sorted(strangers)[0]}, ...): "
                        "give --output a new folder"
                    )
            else:
                kept = yaml.safe_load(path.read_text(encoding="utf-8"))
                self._check_same(kept if isinstance(kept, dict) else {})
            write_text(path, yaml.safe_dump(self.benchmark.settings, sort_keys=False))

    def _check_same(self, kept: dict[str, Any]) -> None:
        now = self.benchmark.settings
        fixed = [{k: v for k, v in side.items() if k not in _MAY_GROW} for side in (kept, now)]
        found = differences(*fixed)
        found += [
            f"{key}: {value} is left out" for key in _MAY_GROW for value in kept.get(key, []) if value not in now[key]
        ]
        if found:
            raise UserError(
                f"{self.folder} holds another benchmark; give --output another folder. What differs (there -> now): "
                + "; ".join(found)
            )

    # -- what is there -------------------------------------------------------------------------------------------

    def _pending(self, group: Group) -> list[Cell]:
        return [cell for cell in group.cells if read_result(self._place(cell)) is None]

    def _place(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.path

    def _check_done(self, cells: Sequence[Cell]) -> None:
        """Refuse to go on where a result would not be comparable with those that come now."""
        for cell in cells:
            result = read_result(self._place(cell))
            if result is not None and result["status"] != "refused":
                identity = Identity(**{key: result[key] for key in Identity._fields})
                self._compare(cell, f"cell {cell}, done before,", identity, result["recipe"])
            elif result is None:
                self._check_half_done(cell)

    def _check_half_done(self, cell: Cell) -> None:
        path = self._place(cell) / "identity.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self._compare(cell, f"cell {cell}, half done,", Identity(*kept["identity"]), kept["recipe"])

    def _compare(self, cell: Cell, what: str, kept: Identity, recipe: dict[str, Any]) -> None:
        away = f"move {self._place(cell)} away to do it again, or give --output a new folder"
        if found := differences(recipe, self._recipe(cell)):
            raise UserError(f"{what} had other settings (there -> now): {'; '.join(found)}; {away}")
        if kept.code_hash != code_hash() and not self.accept_code:
            raise UserError(
                f"{what} was trained by other code ({kept.code_hash[:12]}, now {code_hash()[:12]}); {away}, or give "
                "--accept-code to mix them, marked as such"
            )
        if kept.data_hash != (now := self._data_hash(cell)):
            raise UserError(f"{what} saw other data ({kept.data_hash[:12]}, now {now[:12]}); {away}")
        now_teacher = self.teachers.hash_of(str(cell.teacher or cell.network))
        if None not in (kept.teacher_hash, now_teacher) and kept.teacher_hash != now_teacher:
            name = cell.teacher or cell.network
            raise UserError(f"{what} had another teacher: the weights of {name} have changed since; {away}")

    # -- what it is ----------------------------------------------------------------------------------------------

    def _words(self, cell: Cell, overrides: dict[str, Any] | None = None) -> list[str]:
        weights = self.teachers.weights(cell.teacher) if cell.teacher else None
        return self.benchmark.words(cell, weights, self._place(cell), overrides or {})

    def _recipe(self, cell: Cell) -> dict[str, Any]:
        return recipe_of(self.benchmark, cell)

    def _data(self, cell: Cell) -> Any:
        settings = self.benchmark.settings
        own = settings["teachers"]["data"] if cell.kind == "teacher" else {}
        return data_module(merge(settings["data"], own))

    def _data_hash(self, cell: Cell) -> str:
        if cell.kind not in self._hashes:
            data = self._data(cell)
            data.prepare_data()
            self._hashes[cell.kind] = data_hash(data)
        return self._hashes[cell.kind]

    def _identity(self, cell: Cell) -> Identity:
        teacher = self.teachers.hash_of(cell.teacher) if cell.teacher else None
        return Identity(code_hash(), self._data_hash(cell), teacher)

    # -- doing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self, group: Group, wait: bool) -> Iterator[bool]:
        """The operating system's lock on a group: a process that is killed loses it by itself."""
        place = self.folder / group.path
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write into {place} ({error.strerror}): give --output another folder") from error
        lock = FileLock(place / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                yield False
                return
            self.say(f"{group}: another process is at it, waiting ({_holder(place)})")
            lock.acquire()
        try:
            write_text(place / ".holder", f"process {os.getpid()} on {socket.gethostname()}\n")
            yield True
        finally:
            remove(place / ".holder")
            lock.release()

    def _do(self, group: Group) -> None:
        if group.cells[0].kind == "teacher":
            self._do_teacher(group.cells[0])
            return
        pending = self._pending(group)
        pack = self.folder / group.path / "pack.ckpt"
        # A pack that was killed while its results were written goes on with the members that it had.
        had = members_of(pack) if len(group.cells) > 1 else []
        cells = [cell for cell in group.cells if cell in pending or cell.method in had]
        chosen = {cell: choose(self, cell) for cell in pending if cell.method in self.benchmark.settings["choices"]}
        jobs = [
            Job(
                cell,
                self._words(cell, (chosen[cell] or {}).get("overrides") if cell in chosen else None),
                self._place(cell),
            )
            for cell in cells
        ]
        for cell in pending:
            self._note_identity(cell)
        outcomes = train_pack(jobs, pack) if len(group.cells) > 1 else [train_alone(jobs[0])]
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.cell in pending:
                self._finish(job.cell, outcome, chosen.get(job.cell))
        if len(group.cells) > 1:
            remove(pack)

    def _do_teacher(self, cell: Cell) -> None:
        self._note_identity(cell)
        given = self.teachers.get(cell)
        outcome = (
            Outcome("done", None, None, []) if given else train_alone(Job(cell, self._words(cell), self._place(cell)))
        )
        self._finish(cell, outcome, None, given)

    def _note_identity(self, cell: Cell) -> None:
        content = {"identity": list(self._identity(cell)), "recipe": self._recipe(cell)}
        write_text(self._place(cell) / "identity.json", json.dumps(content, indent=1))

    def _finish(self, cell: Cell, outcome: Outcome, choice: Any, given: Path | None = None) -> None:
        place = self._place(cell)
        if outcome.status == "done":
            self.teachers.forget(cell)
        result = make_result(self, cell, outcome, self._identity(cell), self._recipe(cell), given)
        result["accepted_code"] = self._mixed(result["code_hash"])
        result["chosen_on_validation"] = choice and {k: v for k, v in choice.items() if k != "overrides"}
        write_result(place, result)
        remove(place / "identity.json")
        accuracy = "" if result["acc1_last"] is None else f" {result['acc1_last']:.2f} percent"
        self.say(f"  {cell}: {outcome.status}{accuracy}{'' if outcome.reason is None else ': ' + outcome.reason}")

    def _mixed(self, code: str) -> bool:
        others = (read_result(self._place(cell)) for cell in self.benchmark.cells)
        return any(other is not None and other["code_hash"] != code for other in others)


def _holder(place: Path) -> str:
    try:
        return (place / ".holder").read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"
