"""Paths that a user gives: what is wrong with one is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ickd_pl.errors import UserError, printable


def given_path(value: object, what: str) -> Path:
    """A path, with ``~`` replaced by the home folder.

    Args:
        value: what the user gave.
        what: name of the setting.

    Raises:
        UserError: it is empty, or begins with the home folder of a user that there is not.
    """
    text = str(value)
    if not text.strip():
        raise UserError(f"{what} is empty: give a path.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = printable(text.partition("/")[0])
        raise UserError(f"{what}: {printable(text)}: {user} is no user's home folder: give the whole path.") from error


def there(path: Path, what: str) -> bool:
    """Whether there is a file or folder.

    Raises:
        UserError: that cannot be known, for lack of permission or as the name is too long, for example.
    """
    with reachable(what, path):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except ValueError as error:  # a zero byte
            raise UserError(f"{what}: {printable(path)} is no path ({error}).") from error
    return True


@contextmanager
def reachable(what: str, path: Path) -> Iterator[None]:
    """Say what the system refuses of what is done inside in one line.

    Args:
        what: name of the setting that names the path.
        path: the path, for an error that names none.

    Raises:
        UserError: instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        name, reason = error.filename or path, error.strerror or error
        raise UserError(
            f"{what}: {printable(name)} cannot be read ({printable(reason)}): correct {what}, or allow access to it."
        ) from error
