"""Atomic file writes, and locks between processes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ickd_pl.errors import UserError


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, then atomically replace ``path`` with it.

    The temporary file is in the same folder (a rename across file systems is a copy, which can be interrupted). If the
    block fails, the old file is kept and the temporary file removed; a killed process leaves a hidden file ending in
    ``.tmp``.

    Args:
        path: the file to write.
        keep: path in the same folder to which the old file is moved; None: it is deleted. A process killed at any
            moment leaves the old file at one of the two paths, or the new one at ``path``.

    Raises:
        UserError: the file cannot be written; the message has the path and the number of bytes written.
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
        written = ""
        with suppress(OSError):
            written = f" after {temporary.stat().st_size} bytes"
        advice = "free the space or choose another folder"
        if isinstance(error, FileExistsError | NotADirectoryError):
            advice = f"{path.parent} is not a folder: remove it or choose another one"
        elif isinstance(error, IsADirectoryError):
            advice = "remove that folder or choose another place"
        raise UserError(f"cannot write {path}: {error.strerror or error}{written}; {advice}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock between processes; it is released when its process ends, even if that is killed.

    Args:
        path: the lock file, created if missing.
        timeout: seconds to wait for the lock; below 0: no limit.

    Raises:
        UserError: the folder cannot be written.
        filelock.Timeout: another process holds the lock.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except TimeoutError:  # includes filelock.Timeout, which as an OSError must not be reported as a bad folder
        raise
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its file system has no locks"
        raise UserError(f"cannot write in {path.parent}: {reason or error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def lock_where_possible(path: Path, waits: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock between processes as soon as it is free, if there can be one; yields whether it is held.

    There is none in a folder that cannot be written, or on a file system without locks.

    Args:
        path: the lock file.
        waits: called once if another process holds the lock, to say so.
    """
    with ExitStack() as held:
        has_lock = False
        with suppress(UserError):
            try:
                held.enter_context(locked(path, timeout=0))
            except Timeout:
                waits()
                held.enter_context(locked(path))
            has_lock = True
        yield has_lock


def _temporary(path: Path) -> Path:
    """A unique name: on a shared file system, processes of two machines may have the same process id."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _rename_old(path: Path, keep: Path) -> None:
    """Link the file to ``keep`` before ``path`` is replaced, so that it always exists at one of the two paths."""
    link = _temporary(keep)
    try:
        os.link(path, link)
        link.replace(keep)
    except OSError:  # no hard links: for a moment the file exists only at ``keep``
        path.replace(keep)
    finally:
        with suppress(OSError):  # replace() leaves the link if both paths were already the same file
            link.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entries to disk; file systems that cannot do this are ignored."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
