"""The small files of a results folder: benchmark.yaml, and of a cell identity.json and result.json.

identity.json says what a run depends on, from its beginning; result.json what it found, when it is done.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ickd_pl.benchmark.fingerprint import Identity
from ickd_pl.errors import UserError
from ickd_pl.files import write_text

FORM = 2
"""Of identity.json and result.json. 1, which says nothing of itself: the code of a cell's methods has no hash."""
_NEEDED = ("status", "reason", "code_hash", "data_hash", "teacher_hash", "recipe")


def benchmark_file(folder: Path) -> dict[str, Any]:
    """The settings of a results folder.

    Raises:
        UserError: it is none, or its benchmark.yaml is damaged.
    """
    path = folder / "benchmark.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no results folder of a benchmark: expected {path}, which `bench run` writes")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _damaged_file(path, " ".join(str(error).split())) from error
    for key, kind in {"pairs": str, "methods": str, "seeds": int}.items():
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
            raise _damaged_file(path, f"expected `{key}`, a list")
    return dict(content)


def _damaged_file(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is damaged ({why}): delete it, and `bench run --config FILE --output {path.parent}` writes it again "
        "and keeps the results that are its"
    )


class Begun(NamedTuple):
    """A run that has begun, done or not.

    Attributes:
        identities: what it depended on, newest last; several where ``--accept-code`` let it go on with other code.
        recipe: its settings.
        form: of the file.
    """

    identities: list[Identity]
    recipe: dict[str, Any]
    form: int = FORM

    @property
    def codes(self) -> set[tuple[str, str | None]]:
        """The hashes of the code that has trained it: the shared code's, and its methods'."""
        return {identity.code for identity in self.identities}


def read_begun(place: Path) -> Begun | None:
    """What a run depends on, None where none has begun.

    Raises:
        UserError: the file is damaged.
    """
    content = _read(place / "identity.json", place)
    if content is None:
        return None
    try:
        identities = [Identity(*identity) for identity in content["identities"]]
        return Begun(identities, dict(content["recipe"]), int(content.get("form", 1)))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(place / "identity.json", place, f"{type(error).__name__}: {error}") from error


def write_begun(place: Path, identity: Identity, recipe: dict[str, Any]) -> Begun:
    """Note what a run depends on before it trains. It stays when the run is done."""
    kept = read_begun(place)
    identities = [*(i for i in (kept.identities if kept else []) if i != identity), identity]
    content = {"form": FORM, "identities": [list(i) for i in identities], "recipe": recipe}
    write_text(place / "identity.json", json.dumps(content, indent=1) + "\n")
    return Begun(identities, recipe)


def read_result(place: Path) -> dict[str, Any] | None:
    """A cell's result, None where there is none yet.

    Raises:
        UserError: the file is damaged.
    """
    path = place / "result.json"
    content = _read(path, place)
    missing = [key for key in _NEEDED if content is not None and key not in content]
    if missing:
        raise _damaged(path, place, f"no {missing[0]}")
    return content


def write_result(place: Path, result: dict[str, Any]) -> None:
    """Write result.json in one step."""
    write_text(place / "result.json", json.dumps({"form": FORM, **result}, indent=1, allow_nan=False) + "\n")


def _read(path: Path, place: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, place, " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise _damaged(path, place, "expected a mapping")
    return content


def _damaged(path: Path, place: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}): move {place} away, and `bench run` makes its cell again")


_NUMBER = (int, float)
# Field of result.json: the types it may have besides null.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "reason": str,
    "data": str,
    "split": str,
    "num_test": int,
    "acc1_last": _NUMBER,
    "acc1_best": _NUMBER,
    "best_epoch": int,
    "acc5_last": _NUMBER,
    "train_acc1_last": _NUMBER,
    "epochs": int,
    "parameters": int,
    "seconds": _NUMBER,
    "images_per_second": _NUMBER,
    "packed_with": list,
    "device": str,
    "precision": str,
    "versions": dict,
    "code_hash": str,
    "data_hash": str,
    "teacher_hash": str,
    "accepted_code": bool,
    "chosen_on_validation": dict,
}
# A teacher that was fetched has no epochs, time or speed of its own.
_NEEDED_WHEN_DONE = ("data", "split", "num_test", "acc1_last")


@dataclass(frozen=True)
class CellResult:
    """One result.json. What a cell that was not finished does not have is None."""

    folder: Path
    status: str  # done, failed or refused
    reason: str | None
    data: str | None
    split: str | None
    num_test: int | None
    acc1_last: float | None  # percent, as all accuracies here
    acc1_best: float | None
    best_epoch: int | None
    acc5_last: float | None
    train_acc1_last: float | None
    epochs: int | None
    parameters: int | None
    seconds: float | None
    images_per_second: float | None
    packed_with: list[str]
    device: str | None
    precision: str | None
    versions: dict[str, Any]
    code_hash: str | None
    data_hash: str | None
    teacher_hash: str | None
    accepted_code: bool
    chosen_on_validation: dict[str, Any] | None


def read_cell(folder: Path) -> tuple[dict[str, Any], CellResult]:
    """Which cell a folder's result.json is of, and the result, every field checked.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "result.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, path.parent, " ".join(str(error).split())) from error
    if not isinstance(content, dict) or not isinstance(content.get("cell"), dict):
        raise _damaged(path, path.parent, "expected a mapping with `cell`")
    values: dict[str, Any] = {name: _field(content, name, kind, path) for name, kind in _FIELDS.items()}
    if values["status"] not in ("done", "failed", "refused"):
        raise _damaged(path, path.parent, f"status is {values['status']!r}, expected done, failed or refused")
    if values["status"] == "done":
        absent = [name for name in _NEEDED_WHEN_DONE if values[name] is None]
        if absent:
            raise _damaged(path, path.parent, f"no {absent[0]}, which a finished cell has")
    for name, empty in (("packed_with", []), ("versions", {}), ("accepted_code", False)):
        values[name] = empty if values[name] is None else values[name]
    return _cell(content["cell"], path), CellResult(folder=folder, **values)


def _field(content: dict[str, Any], name: str, kind: type | tuple[type, ...], path: Path) -> Any:
    value = content.get(name)
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if value is not None and (wrong or (isinstance(value, float) and not math.isfinite(value))):
        raise _damaged(path, path.parent, f"{name} is {value!r}")
    return value


def _cell(cell: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check that a result lies where its cell belongs: a copied folder would count twice."""
    seed, teacher = cell.get("seed"), cell.get("teacher")
    parent = ("teachers", teacher) if cell.get("kind") == "teacher" else (cell.get("pair"), cell.get("method"))
    place = (*parent, f"seed_{seed}")
    if place != path.parent.parts[-3:]:
        raise _damaged(path, path.parent, f"it is the result of {'/'.join(map(str, place))} and lies elsewhere")
    if not isinstance(seed, int) or not isinstance(teacher, str):
        raise _damaged(path, path.parent, "expected the cell's teacher and seed")
    return cell
