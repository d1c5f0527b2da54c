"""Settings out of a checkpoint, for the commands that evaluate it: a closed vocabulary, and nothing that is followed.

The student is a network of the registry, by name. The data module is a class that was imported before the file was
opened and that is ours or a subclass of ours, or one that the user names in this call; its arguments are numbers and
texts where the class takes nothing else. Paths and downloads count only where the run's own config.yaml, beside the
checkpoint, has the same ones, and they are printed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import yaml

from ickd_pl.checks import plain_arguments, short
from ickd_pl.data import TensorDataModule
from ickd_pl.errors import UserError
from ickd_pl.weights.checkpoint import RunCheckpoint, read_checkpoint


class Given(NamedTuple):
    """What the user gives of the data in this call.

    Attributes:
        name: of the class; None where none is named.
        arguments: names of its arguments that are given.
    """

    name: str | None
    arguments: frozenset[str]


def given_data(args: Sequence[str]) -> Given:
    """Read ``--data``, ``--data.NAME`` and the ``data`` of ``--config`` files off a command line."""
    name: str | None = None
    arguments: set[str] = set()
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not equals and position + 1 < len(args):
            value = args[position + 1]
        if flag in ("--config", "-c"):
            block = _mapping(Path(value).read_text(encoding="utf-8")).get("data") if Path(value).is_file() else None
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
    return Given(name, frozenset(arguments))


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):  # reported by the parser, which reads it again
        return {}
    return content if isinstance(content, dict) else {}


def evaluation_settings(path: str | Path, args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What ``test``, ``validate`` and ``predict`` take from a checkpoint: the student, the seed and the data.

    Args:
        path: of the checkpoint.
        args: the command line; what it sets is not taken from the file.

    Returns:
        Settings in the form of a configuration file, and a line for the user on what the file decided, or nothing.

    Raises:
        UserError: the file is missing, damaged, no checkpoint of this project, or asks for more than a file may.
    """
    data = given_data(args)
    # Classes that the user names are imported before the file is opened, by the user's word.
    known = known_data(data.name)
    model = {flag.partition("=")[0].removeprefix("--model.") for flag in args if flag.startswith("--model.")}
    checkpoint = read_checkpoint(path, model)
    if type(checkpoint.settings.get("seed")) is not int or not ({"student"} & (checkpoint.settings.keys() | model)):
        raise UserError(
            f"{path} was trained in Python with a network of its own: load it there, with load_from_checkpoint"
        )
    settings: dict[str, Any] = {"model": {"strategies": []}, "seed_everything": checkpoint.settings["seed"]}
    if "student" in checkpoint.settings:
        settings["model"]["student"] = checkpoint.settings["student"]
    found, line = data_settings(checkpoint, data, known)
    return {**settings, **({} if found is None else {"data": found})}, line


def known_data(named: str | None = None) -> dict[str, type]:
    """Data modules that a file may name, by their whole path: ours, their subclasses, and the one that the user names.

    Args:
        named: a class's name or path from the user, whose module is imported.
    """
    if named is not None and "." in named and "/" not in named:
        module = named.rpartition(".")[0]
        try:
            import_module(module)
        except ImportError:  # reported by the parser, in more detail
            return {}
    base = pl.LightningDataModule if named is not None else TensorDataModule
    classes = [cls for cls in _subclasses(base) if not inspect.isabstract(cls)]
    paths = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
    return {p: cls for p, cls in paths.items() if named in (None, p, cls.__name__) or issubclass(cls, TensorDataModule)}


def data_settings(checkpoint: RunCheckpoint, given: Given, known: dict[str, type]) -> tuple[dict[str, Any] | None, str]:
    """The data module of a checkpoint as settings that are safe to build.

    Args:
        checkpoint: the file.
        given: what the user says of the data.
        known: see :func:`known_data`, asked for before the file was read.

    Returns:
        ``{"class_path", "init_args"}`` without what the user gives, None where the user names another class or the
        file does not say; and a line on paths and downloads that the file decided, or nothing.

    Raises:
        UserError: the file names another class, or sets what it may not.
    """
    data = checkpoint.data
    if data is None:
        return None, ""
    path = data["class_path"]
    if given.name is not None and given.name not in (path, path.rpartition(".")[2]):
        return None, ""  # the arguments of another data set do not fit
    cls = known.get(path)
    if cls is None:
        if given.name is not None:
            return None, ""
        raise UserError(
            f"{checkpoint.path}: its data are of the class {short(path)}, which is not one of ickd_pl's: give --data "
            "NAME and its settings on the command line"
        )
    arguments = {name: value for name, value in data["init_args"].items() if name not in given.arguments}
    # Linked from --seed_everything.
    arguments.pop("seed", None)
    where = f"{checkpoint.path}: its data.init_args"
    arguments = plain_arguments(cls, arguments, where, "give it on the command line, as --data.init_args.NAME")
    paths = {name: value for name, value in arguments.items() if _is_path(cls, name, value)}
    kept = _own_data(checkpoint.path, cls)
    for name, value in paths.items():
        if kept.get(name) != value:
            raise UserError(
                f"{where}.{name} is {short(value)}, and a file's paths are followed only where the config.yaml of its "
                f"own run has them too: give --data.init_args.{name}"
            )
    shown = ", ".join(f"{name} {short(value)}" for name, value in paths.items())
    line = f"data of the checkpoint: {cls.__name__}, {shown} (--data.init_args.NAME sets another)" if shown else ""
    return {"class_path": path, "init_args": arguments}, line


def _is_path(cls: type, name: str, value: Any) -> bool:
    """Whether an argument says where to read or whether to fetch, and is not what the class does anyway."""
    parameter = inspect.signature(cls).parameters.get(name)  # None where **kwargs takes it
    if value is None or (parameter is not None and value == parameter.default):
        return False
    hint = "" if parameter is None else str(parameter.annotation)
    texts = value if isinstance(value, list | tuple) else [value]
    return name == "download" or ("Literal" not in hint and any(isinstance(text, str) for text in texts))


def _own_data(checkpoint: Path, cls: type) -> dict[str, Any]:
    """The data module's arguments in the config.yaml of the run folder that a checkpoint lies in, where it has one."""
    folder = checkpoint.resolve().parent
    path = folder.parent / "config.yaml"
    if folder.name != "checkpoints" or not path.is_file():
        return {}
    try:
        data = _mapping(path.read_text(encoding="utf-8")).get("data")
    except (OSError, UnicodeDecodeError):
        return {}
    if not isinstance(data, dict) or str(data.get("class_path")).rpartition(".")[2] != cls.__name__:
        return {}
    arguments = data.get("init_args")
    return arguments if isinstance(arguments, dict) else {}


def _subclasses(cls: type) -> list[type]:
    own: list[type] = cls.__subclasses__()
    return [found for sub in own for found in (sub, *_subclasses(sub))]
