"""The data module's part of a checkpoint, as plain data."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ickd_pl.checks import short
from ickd_pl.errors import UserError
from ickd_pl.weights.checkpoint import read_checkpoint


def is_path(cls: type, name: str, value: Any) -> bool:
    """Whether an argument is a path or a download flag, and differs from the class's default."""
    parameter = inspect.signature(cls).parameters.get(name)  # None if **kwargs accepts it
    if value is None or (parameter is not None and value == parameter.default):
        return False
    hint = "" if parameter is None else str(parameter.annotation)
    values = value if isinstance(value, list | tuple) else [value]
    return name == "download" or ("Literal" not in hint and any(isinstance(item, str) for item in values))


def refuse_paths(cls: type, arguments: dict[str, Any], where: str) -> None:
    """Raise :class:`UserError` if arguments out of a file name a path or ask for a download."""
    for name, value in arguments.items():
        if is_path(cls, name, value):
            raise UserError(
                f"{where}.{name} is {short(value)}, and a file's paths are not followed: give {name}=... to "
                "load_from_checkpoint"
            )


def read_data(checkpoint: str | Path, cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments and the state of the data module that a run was trained on.

    Args:
        checkpoint: the file; nothing in it is imported or called.
        cls: the data module's class, which the file must name.

    Returns:
        The arguments by name, not checked yet, and the state (empty if the file has none).

    Raises:
        UserError: the file is missing, damaged, or stores another data module.
    """
    run = read_checkpoint(checkpoint)
    data = run.data or {"class_path": None, "init_args": {}}
    if data["class_path"] != f"{cls.__module__}.{cls.__qualname__}":
        raise UserError(f"{checkpoint} stores other data: {short(data['class_path'])}, expected {cls.__qualname__}")
    return data["init_args"], run.data_state
