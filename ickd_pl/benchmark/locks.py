"""Who is at work in a folder: the operating system's lock, which a process that is killed loses by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ickd_pl.errors import UserError
from ickd_pl.files import write_text


@contextmanager
def locked(path: Path, wait: Callable[[str], None] | None) -> Iterator[bool]:
    """Lock a folder, which is made where there is none.

    Args:
        path: the folder.
        wait: is told who holds the lock, and it is waited for; None: leave it to that process.

    Returns:
        Whether the lock is held now.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {path} ({error.strerror}): give --output another folder") from error
    lock, note = FileLock(path / ".lock"), path / ".holder"
    try:
        lock.acquire(timeout=1)  # `bench status` looks for a moment
    except Timeout:
        if wait is None:
            yield False
            return
        wait(_noted(path))
        lock.acquire()
    try:
        write_text(note, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield True
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def holder(path: Path) -> str:
    """Who holds the lock of a folder, empty where nobody does."""
    if not (path / ".lock").exists():
        return ""
    try:
        with FileLock(path / ".lock", timeout=0):
            return ""
    except Timeout:
        return _noted(path)
    except OSError:  # a folder that may only be read holds no lock of ours to try
        return ""


def _noted(path: Path) -> str:
    try:
        return (path / ".holder").read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"
