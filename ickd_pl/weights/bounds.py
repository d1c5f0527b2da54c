"""Limits on a file from outside, so that a hostile one is refused within seconds and little memory."""

from __future__ import annotations

import argparse
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ickd_pl.errors import UserError
from ickd_pl.weights.pickles import check_pickle

MAX_DEPTH = 100
"""Levels of dictionaries and lists in a file."""
MAX_CONTAINERS = 200_000
"""Dictionaries and lists in a file; one that is found at several places counts each time."""
MAX_VALUES = 5_000_000
"""Values in all dictionaries and lists, counted likewise."""
MAX_UNPACKED = 64 * 2**20
"""Bytes to which compressed members may unpack in any case; beyond, at most to four times the file's size."""
MAX_HEADER = 16 * 2**20
"""Bytes of a ``.safetensors`` header."""


def check_archive(path: Path) -> None:
    """Check a file of torch's before torch reads it: sizes and checksums of the members of a zip, and the pickles.

    torch itself checks no checksum. It stores tensors uncompressed, so the members together are no larger than the
    file.

    Raises:
        UserError: a checksum that is wrong, members that unpack to much more than the file, or a hostile pickle.
        Exception: it is not a file of torch's.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            # The old format: a magic number, a version, the system, the content and the names of its tensors.
            for _ in range(5):
                if file.tell() == path.stat().st_size:
                    return  # one pickle alone, of which torch says what is wrong
                check_pickle(path, file)
            return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(MAX_UNPACKED, 4 * size):
            raise UserError(
                f"weights file {path} is refused: its {size} bytes unpack to {unpacked}, but torch stores weights "
                "uncompressed: get it from another source, or save it again with torch.save"
            )
        bad = archive.testzip()
        for member in archive.namelist() if bad is None else []:
            if member.endswith("data.pkl"):
                check_pickle(path, archive.read(member))
    if bad is not None:
        raise UserError(f"weights file {path} is damaged (checksum of {bad}): get it again")


def check_header(path: Path) -> None:
    """Check the length of a ``.safetensors`` header, which is read whole.

    Raises:
        UserError: it is longer than the file or than any network's.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, path.stat().st_size - 8):
        raise UserError(f"weights file {path} is damaged (header of {length} bytes): get it again")


def check_nesting(path: Path, content: Any) -> None:
    """Check that what was read is small enough to be walked through, also where it contains itself.

    Raises:
        UserError: it is not.
    """
    deep = next((where for where, _ in containers(content) if len(where) > MAX_DEPTH), None)
    if deep is not None:
        raise UserError(
            f"weights file {path} is refused: its dictionaries and lists are more than {MAX_DEPTH} levels deep, or "
            f"more than {MAX_VALUES} values, which weights never need: save the network's state_dict alone"
        )


def containers(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every dictionary, list and the like in a file's content, outermost first, with the keys that lead to it.

    It ends with a path that is longer than ``MAX_DEPTH`` where the content exceeds a limit.
    """
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    found, values = 1, 0
    while waiting:
        path, container = waiting.popleft()
        yield path, container
        values += _size(container)
        inner = [] if values > MAX_VALUES else [(str(k), v) for k, v in _items(container) if isinstance(v, _CONTAINERS)]
        found += len(inner)
        if values > MAX_VALUES or found > MAX_CONTAINERS or (inner and len(path) >= MAX_DEPTH):
            yield ("...",) * (MAX_DEPTH + 1), container
            return
        waiting.extend(((*path, key), value) for key, value in inner)


_CONTAINERS = (dict, list, tuple, set, frozenset, argparse.Namespace)


def _size(container: Any) -> int:
    return len(vars(container)) if isinstance(container, argparse.Namespace) else len(container)


def _items(container: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(container, argparse.Namespace):
        return vars(container).items()
    return container.items() if isinstance(container, Mapping) else enumerate(container)
