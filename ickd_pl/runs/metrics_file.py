"""Reads ``metrics.csv`` of a run folder, which may be a stranger's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ickd_pl.errors import UserError, printable
from ickd_pl.plain import CSV_BYTES, csv_rows, read_text

LARGEST = 1e18
"""Of an epoch, a time or an accuracy, so that they can be counted and summed."""


def metric_rows(path: Path) -> list[dict[str, float]]:
    """The rows, one per epoch, without empty cells.

    Raises:
        UserError: the file is missing or damaged: a cell is not a number, or an epoch, a time or an accuracy is not a
            finite one; naming it.
    """
    try:
        rows = [
            {name: float(value) for name, value in row.items() if value != ""}
            for row in csv_rows(read_text(path, CSV_BYTES))
        ]
        for row in rows:
            if "epoch" not in row:
                raise ValueError("a row without an epoch")
            for name, value in row.items():
                if (name in ("epoch", "seconds") or "/acc" in name) and not abs(value) <= LARGEST:
                    raise ValueError(f"{name[:40]} is {value}, expected a finite number up to {LARGEST:g}")
        return rows
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def readable_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows as text up to the first that cannot be read, to show the progress of a run; none without a file.

    Raises:
        UserError: nothing of the file can be read; naming it.
    """
    try:
        text = read_text(path, CSV_BYTES)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    with suppress(ValueError):
        yield from csv_rows(text)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = printable(" ".join(str(error).split())[:200])
    return UserError(f"{path} is damaged ({reason}): move {path.parent} away to run it again")
