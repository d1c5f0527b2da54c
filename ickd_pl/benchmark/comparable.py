"""Checks that all results of a folder are comparable: same code, data, settings and teachers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.folder import ResultsFolder
from ickd_pl.benchmark.plan import Cell, without_paths
from ickd_pl.benchmark.records import FORM, StartedRun, read_result, read_started
from ickd_pl.errors import UserError
from ickd_pl.runs.decide import differing, flat


def check_same_benchmark(folder: ResultsFolder, kept: dict[str, Any]) -> None:
    """Check that a benchmark has the settings of its results folder, unless nothing was trained there yet.

    Args:
        folder: the results folder.
        kept: the content of its benchmark.yaml.

    Raises:
        UserError: naming what differs.
    """
    if not folder.has_runs():
        return  # the file may be changed as long as nothing was trained with it
    now = asdict(folder.benchmark.settings)
    found = _differences(_same_settings(kept), _same_settings(now))
    found += [
        f"{key}: {value} is missing"
        for key in ("pairs", "methods", "seeds")
        for value in kept.get(key, [])
        if value not in now[key]
    ]
    if found:
        raise UserError(
            f"{folder.path} contains another benchmark; set --output another folder. "
            f"What differs (stored -> now): {'; '.join(found)}"
        )


def _same_settings(benchmark: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's settings without those that may change while its results stay comparable.

    Pairs, methods and seeds may be added. Paths, and how teachers are obtained, change no result: each result has
    hashes of its data and its teacher.
    """
    kept = {key: value for key, value in benchmark.items() if key not in ("pairs", "methods", "seeds")}
    teachers = {k: v for k, v in kept.get("teachers", {}).items() if k not in ("get", "weights", "floor")}
    kept.setdefault("fused", False)  # files of older versions do not have it
    return {**kept, "data": without_paths(kept.get("data", {})), "teachers": teachers}


def check_all(folder: ResultsFolder, accept_code: bool, settings_too: bool = False) -> None:
    """Refuse to continue if any result or unfinished run, of any shard, would not be comparable with new results.

    Args:
        folder: the results folder.
        accept_code: accept different code.
        settings_too: also compare the settings; they do not change while this process runs.

    Raises:
        UserError: naming the cell, what differs and what to do.
    """
    for cell in folder.benchmark.cells:
        path = folder.cell_folder(cell)
        result, started = read_result(path), read_started(path)
        if result is not None and result.status != "refused":
            done = StartedRun([result.identity], result.recipe, result.form)
            _check(folder, cell, path, f"cell {cell}, done before,", done, accept_code, settings_too)
        elif result is None and started is not None:
            _check(folder, cell, path, f"cell {cell}, half done,", started, accept_code, settings_too)
        if result is None and cell.method in folder.benchmark.settings.choices:
            choices = folder.choices_of(cell)
            for candidate in sorted(choices.glob("*/identity.json")):
                if (started := read_started(candidate.parent)) is not None:
                    what = f"run {candidate.parent.name} of the choice for {cell}"
                    _check(folder, cell, choices, what, started, accept_code, False)


def _check(
    folder: ResultsFolder, cell: Cell, path: Path, what: str, started: StartedRun, accept_code: bool, settings_too: bool
) -> None:
    away, kept = f"move {path} away to train it again, or set --output to a new folder", started.identities[-1]
    mix = "use --accept-code to mix them, marked in the report"
    if started.form > FORM or (started.form < FORM and not accept_code):
        raise UserError(f"{what} was started by {_other_version(started.form, folder.path, mix)}")
    if settings_too and (found := _differences(started.recipe, folder.benchmark.recipe(cell))):
        raise UserError(f"{what} used different settings (stored -> now): {'; '.join(found)}; {away}")
    for suffix, old, now in zip(("", " of its method"), kept.code, folder.code(cell), strict=True):
        if old != now and not accept_code:
            raise UserError(
                f"{what} was trained with different code{suffix} ({str(old)[:12]}, now {now[:12]}); {away}, or {mix}"
            )
    if kept.data_hash != (data := folder.data_hash(cell)):
        raise UserError(f"{what} used different data ({kept.data_hash[:12]}, now {data[:12]}); {away}")
    teacher = folder.teachers.hash_of(str(cell.teacher or cell.network))
    if None not in (kept.teacher_hash, teacher) and kept.teacher_hash != teacher:
        name = cell.teacher or cell.network
        raise UserError(f"{what} used a different teacher: the weights of {name} have changed since; {away}")


def _other_version(form: int, folder: Path, mix: str) -> str:
    if form > FORM:
        return f"a newer version of ickd_pl (file format {form}, this version reads up to {FORM}): install that version"
    return (
        f"an older version of ickd_pl, with different code (file format {form}, now {FORM}): `bench status` and "
        f"`bench report --output {folder}` still read it; to continue, install that version, set --output to a new "
        f"folder, or {mix}"
    )


def mixed(folder: ResultsFolder, cell: Cell) -> bool:
    """Whether different code trained this cell, the runs that chose its arguments, or other cells."""
    paths = [folder.cell_folder(cell), *sorted(folder.choices_of(cell).glob("*/"))]
    codes = {code for path in paths if (started := read_started(path)) for code in started.codes}
    others = [(other, read_result(folder.cell_folder(other))) for other in folder.benchmark.cells]
    return bool(codes - {folder.code(cell)}) or any(
        result.identity.code != folder.code(other) for other, result in others if result is not None
    )


def _differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, as ``name: stored -> now``; those that only affect the display are ignored."""
    return differing(flat(there), flat(now))
