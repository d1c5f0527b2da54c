"""The one reader of a run's checkpoint: what it says of itself, as plain data that is checked before anyone uses it.

A checkpoint may come from a stranger. Its settings are numbers, texts and names out of a closed vocabulary; nothing in
it is ever imported, called, opened or fetched because the file names it.
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


@dataclass(frozen=True)
class RunCheckpoint:
    """What a checkpoint of ``fit`` holds beside the weights.

    Attributes:
        path: of the file.
        content: all of it, as it was read.
        settings: arguments of the module, plain data; ``student`` and ``teacher``, where they are there, are names of
            the registry.
        data: ``{"class_path", "init_args"}`` of the data module, plain data; None where the file does not say.
        rows: of metrics.csv, one for each epoch.
        planned: epochs that the run was to have, with those of a first stage; 0 where the file does not say.
    """

    path: Path
    content: dict[str, Any] = field(repr=False)
    settings: dict[str, Any]
    data: dict[str, Any] | None
    rows: list[dict[str, float]] = field(repr=False)
    planned: int

    @property
    def methods(self) -> list[str]:
        """Class names of the methods, such as ``ICKD``."""
        return [str(spec["class_path"]).rpartition(".")[2] for spec in self.settings.get("strategies") or []]

    @property
    def epochs(self) -> int | None:
        """Epochs that were trained, with those of a first stage."""
        epoch = self.content.get("epoch")
        return epoch + 1 if type(epoch) is int else None

    @property
    def acc1(self) -> float | None:
        """Top-1 accuracy in percent after the last epoch, on the test images or else the validation split."""
        last = self.rows[-1] if self.rows else {}
        return next((last[name] for name in ("test/acc1", "val/acc1") if name in last), None)

    def tensors(self, prefix: str) -> dict[str, Any]:
        """What the checkpoint's weights hold under names that begin so, by the rest of the name."""
        state = self.content["state_dict"]
        return {str(key)[len(prefix) :]: value for key, value in state.items() if str(key).startswith(prefix)}

    @property
    def data_state(self) -> dict[str, Any]:
        """What the data module kept: ``mean``, ``std`` and ``class_names``, each where it is there."""
        # private: lightning checkpoint key of the data module
        path = "" if self.data is None else self.data["class_path"]
        return next((v for k, v in self.content.items() if isinstance(v, dict) and path.endswith(f".{k}")), {})


def is_checkpoint(content: dict[str, Any]) -> bool:
    """Whether a file's content is meant to be a checkpoint of this project; it may still be damaged."""
    return "hyper_parameters" in content and "ickd_pl" in content


def read_checkpoint(path: str | Path, given: Collection[str] = ()) -> RunCheckpoint:
    """Read a checkpoint that ``fit``, or a Trainer in Python, has written.

    Args:
        path: of the file.
        given: arguments of the module, or ``data``, that the user gives and that the file is therefore not asked for.

    Raises:
        UserError: the file is missing, damaged or no checkpoint of this project, or it asks for more than a file may.
    """
    return checkpoint_of(path, read_file(path), given)


def checkpoint_of(path: str | Path, content: dict[str, Any], given: Collection[str] = ()) -> RunCheckpoint:
    """As :func:`read_checkpoint`, for a file that was read already."""
    settings, ours = content.get("hyper_parameters"), content.get("ickd_pl")
    if settings is None or ours is None or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint of ickd_pl: give the checkpoints/last.ckpt of a run")
    if not isinstance(settings, dict) or not isinstance(ours, dict) or not isinstance(content["state_dict"], dict):
        raise UserError(
            f"{path}: its configuration is damaged (hyper_parameters, ickd_pl and state_dict: expected dictionaries)"
        )
    settings = {name: value for name, value in settings.items() if name not in given}
    for name, value in settings.items():
        if type(name) is not str or not name.isidentifier() or name.startswith("_"):
            raise UserError(f"{path}: hyper_parameters has {short(name)}, which is no setting: get the file again")
        _check_setting(path, name, value)
    callbacks = content.get("callbacks")
    record = callbacks.get("EpochRecord") if isinstance(callbacks, dict) else None
    rows, planned = (record.get("rows"), record.get("planned")) if isinstance(record, dict) else (None, None)
    return RunCheckpoint(
        Path(path),
        content,
        settings,
        None if "data" in given else _data(path, ours.get("data")),
        _rows(rows),
        planned if type(planned) is int else 0,
    )


def _check_setting(path: str | Path, name: str, value: Any) -> None:
    if name in ("student", "teacher"):
        if value is not None and (type(value) is not str or value not in model_names()):
            raise UserError(
                f"{path}: its {name} is {short(value)}, and a file may only name a network of ickd_pl: if it is "
                f"to be trusted, give --model.{name} NAME (in Python: load_from_checkpoint(FILE, {name}=NET))"
            )
    elif name == "strategies":
        for position, spec in enumerate(value if isinstance(value, list) else [value]):
            _check_class(
                f"{path}: strategies[{position}]", spec, "give --model.strategies NAME (in Python: strategies=)"
            )
    elif not plain(value):
        raise UserError(
            f"{path}: its {name} is {short(value)}, and a file may only set numbers, texts and lists of them: "
            f"give --model.{name} (in Python: load_from_checkpoint(FILE, {name}=...))"
        )


def _data(path: str | Path, data: Any) -> dict[str, Any] | None:
    if data is None:
        return None
    _check_class(f"{path}: its data", data, "give --data NAME and its settings")
    return {"class_path": data["class_path"], "init_args": dict(data.get("init_args") or {})}


def _check_class(where: str, spec: Any, instead: str) -> None:
    """A class's name and plain arguments. The name is a text and nothing more: whoever builds it looks it up."""
    arguments = (spec.get("init_args") or {}) if isinstance(spec, dict) else None
    if not isinstance(arguments, dict) or type(spec.get("class_path")) is not str:
        raise UserError(f"{where} is {short(spec)}: expected class_path and init_args; {instead}")
    for name, value in arguments.items():
        if type(name) is not str or not plain(value):
            raise UserError(
                f"{where}: init_args.{name} is {short(value)}, and a file may only set numbers, texts and lists of "
                f"them: {instead}"
            )


def _rows(rows: Any) -> list[dict[str, float]]:
    """The rows of numbers by column; none where they are something else."""
    listed = rows if isinstance(rows, list) else []
    for row in listed:
        if not isinstance(row, dict) or not all(type(k) is str and type(v) in (int, float) for k, v in row.items()):
            return []
    return listed
