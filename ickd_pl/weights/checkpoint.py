"""The only reader of a run's checkpoint: its settings as plain data, checked before they are used.

A checkpoint may be untrusted. Its settings are numbers, strings and registered names; nothing is ever imported, called,
opened or fetched because the file names it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ickd_pl.checks import plain, short
from ickd_pl.errors import UserError
from ickd_pl.models import model_names
from ickd_pl.weights.read import read_file
from ickd_pl.weights.search import is_checkpoint

__all__ = ["RunCheckpoint", "checkpoint_of", "is_checkpoint", "read_checkpoint"]

# What Lightning stores and reads itself: key and type.
_READ_BY_LIGHTNING: dict[str, type] = {"callbacks": dict, "loops": dict, "pytorch-lightning_version": str}


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of ``fit``: what it stores beside the weights.

    Attributes:
        path: of the file.
        content: the whole file, as read.
        settings: arguments of the module, plain data; ``student`` and ``teacher``, if present, are registered names.
        data: ``{"class_path", "init_args"}`` of the data module, plain data; None if not stored.
        rows: of metrics.csv, one for each epoch.
        planned: number of epochs planned, with those of a first stage; 0 if not stored.
        record: the whole state of the run's record, as read; empty if not stored.
    """

    path: Path
    content: dict[str, Any] = field(repr=False)
    settings: dict[str, Any]
    data: dict[str, Any] | None
    rows: list[dict[str, float]] = field(repr=False)
    planned: int
    record: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Class names of the methods, such as ``ICKD``."""
        return [str(spec["class_path"]).rpartition(".")[2] for spec in self.settings.get("strategies") or []]

    @property
    def epochs(self) -> int | None:
        """Number of epochs trained, with those of a first stage."""
        epoch = self.content.get("epoch")
        return epoch + 1 if type(epoch) is int else None

    @property
    def acc1(self) -> float | None:
        """Top-1 accuracy in percent after the last epoch, on the test images or else the validation split."""
        last = self.rows[-1] if self.rows else {}
        return next((last[name] for name in ("test/acc1", "val/acc1") if name in last), None)

    def tensors(self, prefix: str) -> dict[str, Any]:
        """The weights whose keys begin with ``prefix``, by the rest of the key."""
        state = self.content["state_dict"]
        return {str(key)[len(prefix) :]: value for key, value in state.items() if str(key).startswith(prefix)}

    @property
    def data_state(self) -> dict[str, Any]:
        """State of the data module: ``mean``, ``std`` and ``class_names``, as far as stored."""
        # private: lightning checkpoint key of the data module
        path = "" if self.data is None else self.data["class_path"]
        return next((v for k, v in self.content.items() if isinstance(v, dict) and path.endswith(f".{k}")), {})


def read_checkpoint(path: str | Path, overridden: Collection[str] = ()) -> RunCheckpoint:
    """Read a checkpoint written by ``fit`` or by a Trainer in Python.

    Args:
        path: of the file.
        overridden: arguments of the module, or ``data``, that the user sets; the file's are ignored.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint of this project, or sets what a file must not set.
    """
    if not Path(path).exists():
        raise UserError(f"checkpoint {path} does not exist: give the checkpoints/last.ckpt of a run")
    return checkpoint_of(path, read_file(path), overridden)


def checkpoint_of(path: str | Path, content: dict[str, Any], overridden: Collection[str] = ()) -> RunCheckpoint:
    """As :func:`read_checkpoint`, for a file that was read already."""
    settings, extra = content.get("hyper_parameters"), content.get("ickd_pl")
    if settings is None or extra is None or "state_dict" not in content:
        raise UserError(f"{path} is not a checkpoint of ickd_pl: give the checkpoints/last.ckpt of a run")
    if not isinstance(settings, dict) or not isinstance(extra, dict) or not isinstance(content["state_dict"], dict):
        raise UserError(
            f"{path}: its configuration is damaged (hyper_parameters, ickd_pl and state_dict: expected dictionaries)"
        )
    for name, kind in _READ_BY_LIGHTNING.items():
        if not isinstance(content.get(name, kind()), kind):
            raise UserError(f"{path} is damaged: {name} is {short(content[name])}: get the file again")
    if type(extra.get("best_acc1", 0.0)) not in (int, float):
        raise UserError(f"{path} is damaged: best_acc1 is {short(extra['best_acc1'])}: get the file again")
    settings = {name: value for name, value in settings.items() if name not in overridden}
    for name, value in settings.items():
        if type(name) is not str or not name.isidentifier() or name.startswith("_"):
            raise UserError(f"{path}: hyper_parameters has {short(name)}, which is not a setting: get the file again")
        _check_setting(path, name, value)
    callbacks = content.get("callbacks")
    record = callbacks.get("EpochRecord") if isinstance(callbacks, dict) else None
    rows, planned = (record.get("rows"), record.get("planned")) if isinstance(record, dict) else (None, None)
    return RunCheckpoint(
        Path(path),
        content,
        settings,
        None if "data" in overridden else _data(path, extra.get("data")),
        _rows(rows),
        planned if type(planned) is int else 0,
        record if isinstance(record, dict) else {},
    )


def _check_setting(path: str | Path, name: str, value: Any) -> None:
    if name in ("student", "teacher"):
        if value is not None and (type(value) is not str or value not in model_names()):
            raise UserError(
                f"{path}: its {name} is {short(value)}, and a file may only name a network of ickd_pl: if you trust "
                f"it, give --model.{name} NAME (in Python: load_from_checkpoint(FILE, {name}=NET))"
            )
    elif name == "strategies":
        for position, spec in enumerate(value if isinstance(value, list) else [value]):
            _check_class(
                f"{path}: strategies[{position}]", spec, "give --model.strategies NAME (in Python: strategies=)"
            )
    elif not plain(value):
        raise UserError(
            f"{path}: its {name} is {short(value)}, and a file may only set numbers, strings and lists of them: "
            f"give --model.{name} (in Python: load_from_checkpoint(FILE, {name}=...))"
        )


def _data(path: str | Path, data: Any) -> dict[str, Any] | None:
    if data is None:
        return None
    _check_class(f"{path}: its data", data, "give --data NAME and its settings")
    return {"class_path": data["class_path"], "init_args": dict(data.get("init_args") or {})}


def _check_class(where: str, spec: Any, instead: str) -> None:
    """Check a class's name and plain arguments. The name is only a string: the code that builds it looks it up."""
    arguments = spec.get("init_args") if isinstance(spec, dict) else 0
    if not isinstance(arguments, dict | None) or type(spec.get("class_path")) is not str:
        raise UserError(f"{where} is {short(spec)}: expected class_path and init_args; {instead}")
    for name, value in (arguments or {}).items():
        if type(name) is not str or not plain(value):
            raise UserError(
                f"{where}: init_args.{name} is {short(value)}, and a file may only set numbers, strings and lists "
                f"of them: {instead}"
            )


def _rows(rows: Any) -> list[dict[str, float]]:
    """The rows, each of numbers by column; no rows if they are anything else."""
    listed = rows if isinstance(rows, list) else []
    for row in listed:
        if not isinstance(row, dict) or not all(type(k) is str and type(v) in (int, float) for k, v in row.items()):
            return []
    return listed
