"""What may stand in one table: a results folder is held to what comes now, and nothing is mixed in silence."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ickd_pl.benchmark.folder import ResultsFolder
from ickd_pl.benchmark.plan import Cell, without_places
from ickd_pl.benchmark.records import FORM, Begun, read_begun, read_result
from ickd_pl.errors import UserError
from ickd_pl.runs.run_folder import differing, flat


def check_same_benchmark(folder: ResultsFolder, kept: dict[str, Any]) -> None:
    """Hold the benchmark to the settings of its folder, where anything was trained by them.

    Args:
        folder: the results folder.
        kept: the content of its benchmark.yaml.

    Raises:
        UserError: naming what differs.
    """
    if not folder.begun():
        return  # a file may be mended as long as nothing was trained by it
    now = asdict(folder.benchmark.settings)
    found = _differences(_same_settings(kept), _same_settings(now))
    found += [
        f"{key}: {value} is left out"
        for key in ("pairs", "methods", "seeds")
        for value in kept.get(key, [])
        if value not in now[key]
    ]
    if found:
        raise UserError(
            f"{folder.path} holds another benchmark; give --output another folder. "
            f"What differs (there -> now): {'; '.join(found)}"
        )


def _same_settings(benchmark: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's settings without what may change while its results stay comparable.

    Pairs, methods and seeds may grow. Where files lie and which teachers come how moves no figure: each result has
    hashes of its data and of its teacher.
    """
    kept = {key: value for key, value in benchmark.items() if key not in ("pairs", "methods", "seeds")}
    teachers = {k: v for k, v in kept.get("teachers", {}).items() if k not in ("get", "weights", "floor")}
    return {**kept, "data": without_places(kept.get("data", {})), "teachers": teachers}


def check_all(folder: ResultsFolder, accept_code: bool, settings_too: bool = False) -> None:
    """Refuse to go on where anything, of whatever shard, would not be comparable with what comes now.

    Args:
        folder: the results folder.
        accept_code: other code is no reason.
        settings_too: compare the settings as well, which do not change while this process runs.

    Raises:
        UserError: naming the cell, what differs and what to do.
    """
    for cell in folder.benchmark.cells:
        path = folder.place(cell)
        result, begun = read_result(path), read_begun(path)
        if result is not None and result.status != "refused":
            done = Begun([result.identity], result.recipe, result.form)
            _check(folder, cell, path, f"cell {cell}, done before,", done, accept_code, settings_too)
        elif result is None and begun is not None:
            _check(folder, cell, path, f"cell {cell}, half done,", begun, accept_code, settings_too)
        if result is None and cell.method in folder.benchmark.settings.choices:
            choices = folder.choices_of(cell)
            for candidate in sorted(choices.glob("*/identity.json")):
                if (begun := read_begun(candidate.parent)) is not None:
                    what = f"run {candidate.parent.name} of the choice for {cell}"
                    _check(folder, cell, choices, what, begun, accept_code, False)


def _check(
    folder: ResultsFolder, cell: Cell, path: Path, what: str, begun: Begun, accept_code: bool, settings_too: bool
) -> None:
    away, kept = f"move {path} away to do it again, or give --output a new folder", begun.identities[-1]
    mix = "give --accept-code to mix them, marked as such"
    if begun.form > FORM or (begun.form < FORM and not accept_code):
        raise UserError(f"{what} was begun by {_other_version(begun.form, folder.path, mix)}")
    if settings_too and (found := _differences(begun.recipe, folder.benchmark.recipe(cell))):
        raise UserError(f"{what} had other settings (there -> now): {'; '.join(found)}; {away}")
    for whose, old, now in zip(("", " of its method"), kept.code, folder.code(cell), strict=True):
        if old != now and not accept_code:
            raise UserError(
                f"{what} was trained by other code{whose} ({str(old)[:12]}, now {now[:12]}); {away}, or {mix}"
            )
    if kept.data_hash != (data := folder.data_hash(cell)):
        raise UserError(f"{what} saw other data ({kept.data_hash[:12]}, now {data[:12]}); {away}")
    teacher = folder.teachers.hash_of(str(cell.teacher or cell.network))
    if None not in (kept.teacher_hash, teacher) and kept.teacher_hash != teacher:
        name = cell.teacher or cell.network
        raise UserError(f"{what} had another teacher: the weights of {name} have changed since; {away}")


def _other_version(form: int, folder: Path, mix: str) -> str:
    if form > FORM:
        return f"a newer version of ickd_pl (form {form}, this one knows {FORM}): install that"
    return (
        f"an older version of ickd_pl, with other code (form {form}, now {FORM}): `bench status` and `bench report "
        f"--output {folder}` still read it; to go on, install that version, give --output a new folder, or {mix}"
    )


def mixed(folder: ResultsFolder, cell: Cell) -> bool:
    """Whether other code took part, in this cell, in the choice of its arguments, or in other cells."""
    paths = [folder.place(cell), *sorted(folder.choices_of(cell).glob("*/"))]
    codes = {code for path in paths if (begun := read_begun(path)) for code in begun.codes}
    others = [(other, read_result(folder.place(other))) for other in folder.benchmark.cells]
    return bool(codes - {folder.code(cell)}) or any(
        result.identity.code != folder.code(other) for other, result in others if result is not None
    )


def _differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, as ``name: there -> now``; how a run is shown does not count."""
    return differing(flat(there), flat(now))
