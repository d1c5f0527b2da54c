"""Locks on folders, by the operating system: a killed process releases its lock automatically."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ickd_pl.errors import UserError
from ickd_pl.files import write_text
from ickd_pl.runs.console import warn

_held: set[Path] = set()


@contextmanager
def locked(path: Path, wait: Callable[[str], None] | None) -> Iterator[bool]:
    """Lock a folder, which is created if it does not exist. A process may lock a folder that it has locked already.

    Where the file system has no locks, this warns and goes on without one.

    Args:
        path: the folder.
        wait: called with the lock's holder before waiting for it; None: do not wait.

    Returns:
        Whether the lock was acquired.

    Raises:
        UserError: the folder cannot be written.
    """
    if path.resolve() in _held:
        yield True
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {path} ({error.strerror}): choose another folder") from error
    lock, note = FileLock(path / ".lock"), path / ".holder"
    try:
        lock.acquire(timeout=1)  # `bench status` holds it for a moment
    except Timeout:
        if wait is None:
            yield False
            return
        wait(_noted(path))
        lock.acquire()
    except PermissionError as error:
        raise UserError(f"cannot write into {path} ({error.strerror}): choose another folder") from error
    except (OSError, NotImplementedError):
        warn(f"warning: the file system of {path} has no locks: do not start a second run in this folder")
    try:
        write_text(note, f"process {os.getpid()} on {socket.gethostname()}\n")
        _held.add(path.resolve())
        yield True
    finally:
        _held.discard(path.resolve())
        note.unlink(missing_ok=True)
        lock.release()


def holder(path: Path) -> str:
    """The process that holds a folder's lock; empty if it is free."""
    if not (path / ".lock").exists():
        return ""
    try:
        with FileLock(path / ".lock", timeout=0):
            return ""
    except Timeout:
        return _noted(path)
    except (OSError, NotImplementedError):  # the lock of a read-only folder cannot be tried
        return ""


def _noted(path: Path) -> str:
    try:
        return (path / ".holder").read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"
