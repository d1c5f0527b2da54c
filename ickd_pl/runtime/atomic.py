"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ickd_pl.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path this yields; at the end it takes the place of ``path`` in one step.

    The temporary file lies in the same folder (a rename across file systems is a copy, which can be cut short).
    When the block fails, the old file stays and the temporary one is removed; what a killed process leaves is a
    hidden file ending in ``.tmp``.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free the space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
