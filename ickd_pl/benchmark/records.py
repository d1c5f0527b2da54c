"""Reads and writes the files of a results folder: benchmark.yaml, and identity.json and result.json of each cell.

identity.json is written when a run starts and states what it depends on; result.json is written when it is done. Each
has one dataclass, whose fields are the file's keys and their types, one reader and one writer.
"""

from __future__ import annotations

import json
import re
import types
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ickd_pl.benchmark.fingerprint import Identity
from ickd_pl.errors import UserError, printable
from ickd_pl.files import write_text
from ickd_pl.plain import read_json, read_yaml
from ickd_pl.runs.machine import Piece

FORM = 2
"""Format version of identity.json and result.json. Files without one are of form 1, without a method hash."""
# Limits on numbers, string lengths and nesting, so that numbers can be summed and strings shown.
LARGEST, LONGEST, DEEPEST = 1e18, 10_000, 40


def benchmark_file(folder: Path) -> dict[str, Any]:
    """The settings of a results folder.

    Raises:
        UserError: it is not a results folder, or its benchmark.yaml is damaged.
    """
    path = folder / "benchmark.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a results folder of a benchmark: expected {path}, which `bench run` writes")
    try:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError("expected a mapping")
        _check_plain(content, "the file")
        for key, kind in {"pairs": list[str], "methods": list[str], "seeds": list[int]}.items():
            _parse(content.get(key), kind, f"`{key}`")
        for key in ("data", "trainer", "model", "teachers", "choices"):
            _parse(content.get(key, {}), dict[str, Any], f"`{key}`")
        _parse(content.get("data", {}).get("init_args"), dict[str, Any] | None, "`data.init_args`")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({_one_line(error)}): delete it, and `bench run --config FILE --output {folder}` "
            "recreates it and keeps the matching results"
        ) from error
    return content


@dataclass(frozen=True)
class StartedRun:
    """identity.json: a run that was started, finished or not.

    Attributes:
        identities: what it depended on, newest last; several if it resumed with different code (``--accept-code``).
        recipe: its settings.
        form: format version of the file.
    """

    identities: list[Identity]
    recipe: dict[str, Any]
    form: int = 1

    def __post_init__(self) -> None:
        if not self.identities:
            raise ValueError("identities is empty")

    @property
    def codes(self) -> set[tuple[str, str | None]]:
        """Hashes of all code that trained it: pairs of the shared code's and its methods'."""
        return {identity.code for identity in self.identities}


@dataclass(frozen=True, kw_only=True)
class CellKey:
    """The cell of a result. For a teacher's own training, pair, student and method are None."""

    kind: Literal["teacher", "student"] = "student"
    pair: str | None = None
    teacher: str
    student: str | None = None
    method: str | None = None
    seed: int

    @property
    def path(self) -> Path:
        """The cell's folder, relative to ``cells`` in the results folder."""
        parent = ("teachers", self.teacher) if self.kind == "teacher" else (str(self.pair), str(self.method))
        return Path(*parent, f"seed_{self.seed}")


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """result.json: a cell's results and all they depend on. Unknown values are None; accuracies are in %.

    A field added here is read, written and becomes a column of report.csv. A further figure needs no field: it goes
    into ``measured`` by its name (``benchmark/result.py``) and is the column measured_NAME of report.csv; a table
    shows its mean by ``entry.measured(NAME)`` (``report/tables.py``).
    """

    form: int = 1
    cell: CellKey
    status: Literal["done", "failed", "refused"]
    reason: str | None = None
    data: str | None = None
    split: str | None = None
    num_test: int | None = None
    acc1_last: float | None = None
    acc1_best: float | None = None
    best_epoch: int | None = None
    acc5_last: float | None = None
    train_acc1_last: float | None = None
    epochs: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    config: dict[str, Any] | None = None
    packed_with: list[str] = field(default_factory=list)
    device: str | None = None
    precision: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)  # only of a run continued on another device or by other versions
    recipe: dict[str, Any]
    code_hash: str
    data_hash: str
    teacher_hash: str | None = None
    method_hash: str | None = None
    weights: str | None = None  # file of a teacher that was not trained by this benchmark
    accepted_code: bool = False
    chosen_on_validation: dict[str, Any] | None = None
    measured: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A fetched teacher has no epochs, time or speed.
        for name in ("data", "split", "num_test", "acc1_last"):
            if self.status == "done" and getattr(self, name) is None:
                raise ValueError(f"no {name}, which a finished cell must have")

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds / 3600

    @property
    def identity(self) -> Identity:
        """What the result depends on."""
        return Identity(**{name: getattr(self, name) for name in Identity._fields})


Content = TypeVar("Content", StartedRun, CellResult, float)


def read_started(folder: Path) -> StartedRun | None:
    """What the run in a folder depends on; None if no run has started.

    Raises:
        UserError: the file is damaged.
    """
    return _read(folder / "identity.json", StartedRun)


def write_started(folder: Path, identity: Identity, recipe: dict[str, Any]) -> StartedRun:
    """Record what a run depends on before it trains. The file is kept after the run."""
    kept = read_started(folder)
    started = StartedRun([*(i for i in (kept.identities if kept else []) if i != identity), identity], recipe, FORM)
    _write(folder / "identity.json", started)
    return started


def read_result(folder: Path) -> CellResult | None:
    """The result of the cell in a folder; None if there is none yet.

    Raises:
        UserError: the file is damaged, or of another cell: a copied folder would count twice.
    """
    result = _read(path := folder / "result.json", CellResult)
    if result is not None and result.cell.path.parts != folder.parts[-3:]:
        raise damaged(path, f"it is the result of {_short(result.cell.path.as_posix())} and is stored elsewhere")
    return result


def write_result(folder: Path, result: CellResult) -> None:
    """Write result.json atomically."""
    _write(folder / "result.json", result)


def read_accuracy(folder: Path) -> float | None:
    """The accuracy on validation images of a run that chooses arguments (accuracy.json); None if there is none yet.

    Raises:
        UserError: the file is damaged.
    """
    value = _read(folder / "accuracy.json", float)
    return None if value is None else float(value)


def write_accuracy(folder: Path, accuracy: float) -> None:
    """Write accuracy.json atomically."""
    write_text(folder / "accuracy.json", json.dumps(accuracy, allow_nan=False))


def damaged(path: Path, why: str | Exception) -> UserError:
    """The error for an unusable file of a cell."""
    return UserError(
        f"{path} is damaged ({_one_line(why)}): move {path.parent} away, and `bench run` trains its cell again"
    )


def _write(path: Path, record: StartedRun | CellResult) -> None:
    some = ("weights", "measured", "pieces")  # only some results have these keys
    content = {name: value for name, value in asdict(record).items() if value or name not in some}
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _read(path: Path, kind: type[Content]) -> Content | None:
    try:
        value = read_json(path, deepest=None)  # fields of a later version are left out, however deep
        if not is_dataclass(kind):
            _check_plain(value, "the file")
        content: Content = _parse(value, kind, "the file")
        return content
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def _parse(value: Any, kind: Any, name: str) -> Any:
    """Convert a value to a field's type; only the types declared in this file are ever created.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    kind, inner = get_origin(options[0]) or options[0], get_args(options[0])
    if value is None and types.NoneType in options:
        return None
    if is_dataclass(kind) and isinstance(value, dict):
        return _parse_fields(value, kind, "" if name == "the file" else f"{name}.")
    if kind is Identity and isinstance(value, list) and len(value) in (3, len(Identity._fields)):  # form 1 has three
        hints = get_type_hints(Identity)
        return Identity(*(_parse(v, hints[f], f"{name}.{f}") for f, v in zip(Identity._fields, value, strict=False)))
    if kind is list and isinstance(value, list):
        return [_parse(v, inner[0], f"{name}[{i}]") for i, v in enumerate(value)]
    if kind is dict and isinstance(value, dict):
        return {key: _parse(v, inner[1], f"{name}.{key}") for key, v in value.items()}
    choices = inner if kind is Literal else ()
    numbers = (int, float) if kind is float else (kind,)
    if kind is Any or value in choices or (type(value) in numbers):
        return value
    expected = ", ".join(choices) or _EXPECTED.get(kind, "a mapping")
    null = " or null" if types.NoneType in options else ""
    raise ValueError(f"{_short(name)} is {_short(repr(value))}, expected {expected}{null}")


_EXPECTED = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", list: "a list"}
_EXPECTED[Identity] = f"a list of {', '.join(Identity._fields)}"


def _parse_fields(content: dict[str, Any], kind: Any, prefix: str) -> Any:
    hints = get_type_hints(kind)
    found = {}
    for f in fields(kind):
        name = f"{prefix}{f.name}"
        if f.name in content:
            _check_plain(content[f.name], name)
            found[f.name] = _parse(content[f.name], hints[f.name], name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"no {name}")
    return kind(**found)


def _check_plain(value: Any, name: str) -> None:
    """Check that a value is not too deeply nested, too long or too large to be summed and shown in tables."""
    level = [value]
    for _ in range(DEEPEST):
        for v in level:
            verb = "is" if v is value else "has"
            if isinstance(v, str) and (len(v) > LONGEST or re.search(r"[\ud800-\udfff]", v)):
                raise ValueError(f"{name} {verb} {_short(repr(v))}, expected text of up to {LONGEST:,} characters")
            if isinstance(v, (int, float)) and not abs(v) <= LARGEST:
                raise ValueError(f"{name} {verb} {_short(str(v))}, expected a finite number up to {LARGEST:g}")
        inner = [[*v, *v.values()] if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [v for values in inner for v in values]
        if not level:
            return
    raise ValueError(f"{name} is nested deeper than {DEEPEST}")


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))
