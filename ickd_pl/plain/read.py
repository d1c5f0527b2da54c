"""Bounded reading of files that may be hostile: regular files only, and YAML and JSON of limited size and depth.

The readers raise ``OSError`` for a file that cannot be opened or is not a regular one (a pipe would hang, a device may
never end), and ``ValueError`` with the reason, without the path, for content that is wrong, too large or too deep.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from ickd_pl.errors import printable

YAML_BYTES, JSON_BYTES = 2**20, 2**22
"""Largest files that are read: 1 MiB of YAML, 4 MiB of JSON."""
DEEPEST = 100
"""Levels of lists and mappings inside each other."""
MOST_VALUES, LONGEST_VALUE = 100_000, 100_000
"""Values in YAML, those counted again that an alias repeats, and characters of one of them."""

if TYPE_CHECKING:
    _Loader = yaml.SafeLoader
else:
    _Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some 20 times as fast; not built everywhere


class TooMuch(ValueError):
    """Content beyond a limit; the message says which."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a pipe, socket, device or folder raises ``OSError`` and never hangs."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise OSError(errno.EINVAL, f"{kind}, not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a regular file of up to ``most`` bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise TooMuch(f"larger than {most:,} bytes")
    return content


def read_text(path: str | Path, most: int) -> str:
    """The text (UTF-8) of a regular file of up to ``most`` bytes."""
    return read_bytes(path, most).decode("utf-8")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file; see :func:`parse_yaml`."""
    return parse_yaml(read_text(path, YAML_BYTES))


def parse_yaml(text: str) -> Any:
    """Plain data from YAML, within seconds and little memory.

    Raises:
        ValueError: not valid YAML, or a key is given twice.
        TooMuch: more than ``YAML_BYTES``, ``DEEPEST``, ``MOST_VALUES`` or ``LONGEST_VALUE`` allow.
    """
    check_yaml(text)
    try:
        return yaml.load(text, Loader=_UniqueLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise _yaml_error(error) from error


def check_yaml(text: str) -> list[str]:
    """Measure YAML. Nothing is built, and what an alias repeats counts as often as it is repeated.

    Returns:
        The strings in it.

    Raises:
        ValueError: it is not valid YAML.
        TooMuch: its size, depth, number of values or one value is beyond a limit.
    """
    if len(text) > YAML_BYTES:
        raise TooMuch(f"larger than {YAML_BYTES:,} bytes")
    scalars: list[str] = []
    anchors: dict[str, tuple[int, int]] = {}
    inside: list[list[Any]] = [[None, 0, 0]]  # of each open list or mapping: its anchor, values and levels
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append([event.anchor, 1, 1])
                values, levels = 0, 0
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, values, levels = inside.pop()
                anchors[anchor] = values, levels
            elif isinstance(event, yaml.ScalarEvent):
                values, levels = anchors[event.anchor or ""] = 1, 0
                scalars.append(event.value)
                if len(event.value) > LONGEST_VALUE:
                    raise TooMuch(f"holds a value of more than {LONGEST_VALUE:,} characters")
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:
                    raise TooMuch(f"refers to {printable(event.anchor)}, which is unknown or around it")
                values, levels = anchors[event.anchor]
            else:
                continue
            inside[-1][1] += values
            inside[-1][2] = max(inside[-1][2], levels + 1)
            if len(inside) + levels > DEEPEST + 1:
                raise TooMuch(f"nested deeper than {DEEPEST} levels")
            if sum(part[1] for part in inside) > MOST_VALUES:
                raise TooMuch(f"holds more than {MOST_VALUES:,} values, counting repeated ones")
    except yaml.YAMLError as error:
        raise _yaml_error(error) from error
    return scalars


class _UniqueLoader(_Loader):
    """A YAML loader that refuses duplicate keys, of which the first would be silently ignored."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # `<<`, which may be given beside what it merges
                continue
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen |= {name} if isinstance(name, Hashable) else set()
        return dict(super().construct_mapping(node, deep))


def _yaml_error(error: Exception) -> ValueError:
    # The C parser looks so far ahead that it may find this first.
    # private: yaml message "exceeded maximum nesting depth"
    if isinstance(error, RecursionError) or "maximum nesting depth" in str(error):
        return TooMuch(f"nested deeper than {DEEPEST} levels")
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None:
        return ValueError(f"not valid YAML: {' '.join(str(error).split())}")
    problem = getattr(error, "problem", None)
    return ValueError(f"not valid YAML: {problem} in line {mark.line + 1}, column {mark.column + 1}")


def read_json(path: str | Path, deepest: int | None = DEEPEST) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        deepest: levels of lists and mappings inside each other; None: as many as Python reads.

    Raises:
        ValueError: not valid JSON, too large or too deep.
    """
    try:
        content = json.loads(read_text(path, JSON_BYTES))
    except RecursionError as error:
        raise TooMuch("nested too deeply") from error
    level, depth = [content], 0
    while deepest is not None and level:
        level = [v for part in level for v in _inside(part)]
        depth += 1
        if depth > deepest + 1:
            raise TooMuch(f"nested deeper than {deepest} levels")
    return content


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
