"""Read the settings in a checkpoint safely, for the commands that evaluate it. Nothing in the file is executed.

The student is a registered network, by name. The data module is a class that was imported before the file was opened:
one of this package, a subclass of those, or one that the user names in this call. Its arguments may only be numbers
and strings, where the class accepts nothing else. Paths and downloads are used only if the run's own config.yaml
beside the checkpoint has the same values, and they are printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from ickd_pl.checks import plain_arguments, short
from ickd_pl.data import TensorDataModule
from ickd_pl.data.stored import is_path
from ickd_pl.errors import UserError
from ickd_pl.models.discovery import subclasses
from ickd_pl.plain import parse_yaml, read_yaml
from ickd_pl.weights.checkpoint import RunCheckpoint, read_checkpoint


class DataArguments(NamedTuple):
    """What the command line sets of the data module.

    Attributes:
        name: name of the class; None if not set.
        arguments: names of the class's arguments that are set.
    """

    name: str | None
    arguments: frozenset[str]


def data_arguments(args: Sequence[str]) -> DataArguments:
    """Find ``--data``, ``--data.NAME`` and the ``data`` of ``--config`` files in a command line."""
    name: str | None = None
    arguments: set[str] = set()
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not equals and position + 1 < len(args):
            value = args[position + 1]
        if flag in ("--config", "-c"):
            block = _mapping(Path(value)).get("data")
        elif flag == "--data":
            block = _mapping(value) or {"class_path": value}
        else:
            if flag.startswith("--data."):
                arguments.add(flag.removeprefix("--data.").removeprefix("init_args.").rstrip("+"))
            continue
        if isinstance(block, dict):
            name = str(block["class_path"]) if "class_path" in block else name
            arguments |= set(block.get("init_args") or {})
        elif isinstance(block, str):
            name = block
    return DataArguments(name, frozenset(arguments))


def _mapping(source: str | Path) -> dict[str, Any]:
    """A mapping from YAML text or a file; empty if it is none, or cannot be read: the parser reports that."""
    try:
        content = read_yaml(source) if isinstance(source, Path) else parse_yaml(source)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def evaluation_settings(path: str | Path, args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The settings that ``test``, ``validate`` and ``predict`` take from a checkpoint: student, seed and data.

    Args:
        path: path of the checkpoint.
        args: the command line, whose settings take precedence over the file's.

    Returns:
        Settings in the form of a configuration file, and a line for the user on the paths it uses, or "".

    Raises:
        UserError: the file is missing, damaged, not a checkpoint of ickd_pl, or has settings that a file may not set.
    """
    data = data_arguments(args)
    # Before the file is opened, so that only the user decides what is imported.
    known = known_data(data.name)
    model = {flag.partition("=")[0].removeprefix("--model.") for flag in args if flag.startswith("--model.")}
    checkpoint = read_checkpoint(path, model)
    if type(checkpoint.settings.get("seed")) is not int or "student" not in {*checkpoint.settings, *model}:
        raise UserError(
            f"{path} has a network of your own, which a file cannot bring back: load it in Python, with "
            "DistillationModule.load_from_checkpoint(FILE, student=NET, student_layers=LAYERS, teacher=TEACHER)"
        )
    settings: dict[str, Any] = {"model": {"strategies": []}, "seed_everything": checkpoint.settings["seed"]}
    if "student" in checkpoint.settings:
        settings["model"]["student"] = checkpoint.settings["student"]
    found, line = data_settings(checkpoint, data, known)
    return {**settings, **({} if found is None else {"data": found})}, line


def known_data(named: str | None = None) -> dict[str, type]:
    """Data modules that a file may name, by import path: the package's, their subclasses, and the user's.

    Args:
        named: a class name or import path from the user; its module is imported.
    """
    if named is not None and "." in named and "/" not in named:
        module = named.rpartition(".")[0]
        try:
            import_module(module)
        except ImportError:  # the parser reports it in more detail
            return {}
    base = pl.LightningDataModule if named is not None else TensorDataModule
    paths: dict[str, type] = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in subclasses(base)}
    return {p: cls for p, cls in paths.items() if named in (None, p, cls.__name__) or issubclass(cls, TensorDataModule)}


def data_settings(
    checkpoint: RunCheckpoint, user: DataArguments, known: dict[str, type]
) -> tuple[dict[str, Any] | None, str]:
    """The data module of a checkpoint as settings that are safe to build.

    Args:
        checkpoint: the checkpoint.
        user: what the user sets of the data.
        known: the result of :func:`known_data`, called before the file was read.

    Returns:
        ``{"class_path", "init_args"}`` without what the user sets, None if the user names another class or the file
        has no data module; and a line on the paths and downloads taken from the file, or "".

    Raises:
        UserError: the file names an unknown class, or sets what a file may not set.
    """
    data = checkpoint.data
    if data is None:
        return None, ""
    path = data["class_path"]
    if user.name is not None and user.name not in (path, path.rpartition(".")[2]):
        return None, ""  # the arguments of another data set do not fit
    cls = known.get(path)
    if cls is None:
        if user.name is not None:
            return None, ""
        raise UserError(
            f"{checkpoint.path}: its data module {short(path)} is not one of ickd_pl's: set --data NAME and its "
            "arguments on the command line"
        )
    arguments = {name: value for name, value in data["init_args"].items() if name not in user.arguments}
    # Linked from --seed_everything.
    arguments.pop("seed", None)
    where = f"{checkpoint.path}: its data.init_args"
    arguments = plain_arguments(cls, arguments, where, "set it on the command line, below --data.init_args")
    paths = {name: value for name, value in arguments.items() if is_path(cls, name, value)}
    stored = _own_data(checkpoint.path, cls)
    for name, value in paths.items():
        if stored.get(name) != value:
            raise UserError(
                f"{where}.{name} is {short(value)}, but a file's paths are used only if the config.yaml of its own run "
                f"has them too: set --data.init_args.{name}"
            )
    shown = ", ".join(f"{name} {short(value)}" for name, value in paths.items())
    line = f"data of the checkpoint: {cls.__name__}, {shown} (override with --data.init_args.NAME)" if shown else ""
    return {"class_path": path, "init_args": arguments}, line


def _own_data(checkpoint: Path, cls: type) -> dict[str, Any]:
    """The data module's arguments in the config.yaml of the checkpoint's run folder; empty if there is none."""
    folder = checkpoint.resolve().parent
    path = folder.parent / "config.yaml"
    if folder.name != "checkpoints" or not path.is_file():
        return {}
    data = _mapping(path).get("data")
    if not isinstance(data, dict) or str(data.get("class_path")).rpartition(".")[2] != cls.__name__:
        return {}
    arguments = data.get("init_args")
    return arguments if isinstance(arguments, dict) else {}
