"""Files that are either whole or not there, and locks that one process can hold."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ickd_pl.errors import UserError


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Write to the path this yields; at the end it takes the place of ``path`` in one step.

    The temporary file lies in the same folder (a rename across file systems is a copy, which can be cut short).
    When the block fails, the old file stays and the temporary one is removed; what a killed process leaves is a
    hidden file ending in ``.tmp``.

    Args:
        path: the file to write.
        keep: the name that the old file then has, in the same folder; None: it is gone. A process killed at any
            moment leaves the old file under one of the two names, or the new one as ``path``.

    Raises:
        UserError: the folder cannot be written; with the path and how many bytes were written.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _rename_old(path, keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        written = f" after {temporary.stat().st_size} bytes" if temporary.is_file() else ""
        raise UserError(
            f"cannot write {path}: {error.strerror or error}{written}; free the space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock that one process can have; it is free again when its holder ends, however it ends.

    Args:
        path: the lock's file, made where it is not there.
        timeout: seconds to wait for it; below 0: as long as it takes.

    Raises:
        UserError: its folder cannot be written.
        filelock.Timeout: another process has it.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except TimeoutError:  # filelock.Timeout is one; as an OSError it must not look like a bad folder
        raise
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its file system has no locks"
        raise UserError(f"cannot write in {path.parent}: {reason or error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def _temporary(path: Path) -> Path:
    """A name that no other process has: on a shared folder two may have the same number."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _rename_old(path: Path, keep: Path) -> None:
    """Give the file its second name before it loses the first: no moment without it under a final name."""
    link = _temporary(keep)
    try:
        os.link(path, link)
        link.replace(keep)
    except OSError:  # a file system without hard links: for a moment only ``keep`` is there
        path.replace(keep)
    finally:
        with suppress(OSError):  # replace() does nothing where both names were the same file already
            link.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the names as lasting as the contents; not every file system can, and nothing is lost where it cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
