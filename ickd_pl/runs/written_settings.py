"""The configuration of a run as plain data that can be written to config.yaml and read again."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ickd_pl.checks import short
from ickd_pl.errors import UserError


def written_settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """All settings as plain data; as a ``--config`` file they give an equal configuration.

    The parser's own dump reads the string "1e-5" as a number again, and writes a sentence for an object that it cannot
    write. Here plain values stay as they are, and an object that no text describes is left out where it is the
    argument's default.

    Raises:
        UserError: a setting cannot be written; the message names it.
    """
    config = _with_plain_enums(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = parser.dump(config, skip_none=False, skip_link_targets=True)
        except (yaml.representer.RepresenterError, ValueError) as error:
            # Old versions of the parser write no sentence instead, also where the object is a default.
            found = re.search(r"cannot represent an object', (.{1,100})\)", str(error))
            if found is None:
                raise
            raise UserError(
                f"cannot represent {found[1]}: config.yaml cannot hold a setting so that it can be read again: "
                "give numbers, strings, lists of them, or a class by class_path and init_args"
            ) from error
    settings: dict[str, Any] = _plain(config, yaml.safe_load(text), "", {})
    return settings


def _with_plain_enums(value: Any) -> Any:
    """A copy with the strings of enums of strings, such as a Timer's ``interval``, which the parser cannot write."""
    if isinstance(value, Namespace):
        plain = {key: _with_plain_enums(inner) for key, inner in vars(value).items()}
        return Namespace(**plain)  # type: ignore[no-untyped-call]
    if isinstance(value, dict):
        return {key: _with_plain_enums(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_plain_enums(inner) for inner in value)
    return value.value if isinstance(value, str) and isinstance(value, Enum) else value


def yaml_text(settings: Mapping[str, Any]) -> str:
    """The settings as YAML that is read as the same values by YAML 1.1 and by the command line."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes a string that only the command line reads as a number, such as 1e-5."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    like_number = re.fullmatch(r"[-+]?[\d_.]+([eE][-+]?\d+)?", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if like_number else None)


_Dumper.add_representer(str, _quoted)


def _plain(value: Any, dumped: Any, name: str, defaults: Mapping[str, Any]) -> Any:
    """A value of the configuration as plain data.

    Args:
        value: in the parser's configuration.
        dumped: the same in the parser's dump.
        name: of the setting, for the message.
        defaults: default values by argument, where the value is a class's arguments; else empty.
    """
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if isinstance(value, Namespace | dict) and isinstance(dumped, dict):
        texts = {str(key): text for key, text in dumped.items()}  # without what is linked to another setting
        own = {
            key: v for key, v in (vars(value) if isinstance(value, Namespace) else value).items() if str(key) in texts
        }
        of_class = _defaults(own.get("class_path"))
        return {
            key: _plain(one, texts[str(key)], f"{name}.{key}", of_class if key == "init_args" else {})
            for key, one in own.items()
            if not (_is_unwritten(texts[str(key)]) and _equal(one, defaults.get(key)))
        }
    if isinstance(value, list | tuple) and isinstance(dumped, list):
        return [_plain(one, dumped[i], f"{name}[{i}]", {}) for i, one in enumerate(value)]
    if _is_unwritten(dumped):
        raise UserError(
            f"{name.lstrip('.').partition('.')[2]} is {short(value)}, which config.yaml cannot hold so that it can be "
            "read again: give numbers, strings, lists of them, or a class by class_path and init_args"
        )
    return dumped


def _is_unwritten(dumped: Any) -> bool:
    # private: jsonargparse message "Unable to serialize instance"
    return isinstance(dumped, str) and dumped.startswith("Unable to serialize instance")


def _equal(one: Any, other: Any) -> bool:
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except (TypeError, ValueError, RuntimeError):  # such as an array of more than one value
        return False


def _defaults(path: Any) -> dict[str, Any]:
    """Default values of a class's arguments, also those that it passes on to its parents."""
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    cls = getattr(sys.modules.get(module), name, None)
    parents = reversed(inspect.getmro(cls)) if isinstance(cls, type) else ()
    calls = [call for one in parents if inspect.isfunction(call := vars(one).get("__init__"))]
    return {name: p.default for call in calls for name, p in inspect.signature(call).parameters.items()}
