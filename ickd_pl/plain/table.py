"""CSV files: cells that no spreadsheet evaluates and from which every name can be recovered."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator

from ickd_pl.errors import printable

CSV_BYTES = 2**24
"""Largest table that is read: 16 MiB."""
# A spreadsheet evaluates a cell that begins with one of these; it leaves out spaces, and knows the wide forms.
_FORMULA = re.compile(r"[\t\r]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV text, each cell by :func:`csv_cell`."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(csv_cell, row) for row in rows)
    return out.getvalue()


def csv_cell(value: object) -> object:
    """A cell that every program reads and no spreadsheet evaluates; :func:`from_csv_cell` gives the text back.

    Control characters, and bytes of a file name that are not UTF-8, are written ``\\x1b`` and rarer ones ``\\u2028``;
    a backslash before ``x`` or ``u`` is written ``\\x5c``. Line breaks and tabs stay. A text that a spreadsheet would
    take for a formula (it begins with ``= + - @``, also after spaces, with a tab or a carriage return) gets a ``'``
    before it, as does one that begins with a ``'``. Numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    mark = "'" if value.startswith("'") or _FORMULA.match(value) else ""
    return mark + printable(re.sub(r"\\(?=[xu])", r"\\x5c", value), lines=True)


def from_csv_cell(text: str) -> str:
    """The text that :func:`csv_cell` wrote; bytes that are not UTF-8 come back as Python's surrogates for them."""

    def character(found: re.Match[str]) -> str:
        code = int(found[1] or found[2], 16)
        return chr(code + 0xDC00 if found[1] and code >= 0x80 else code)

    return re.sub(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})", character, text.removeprefix("'"))


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of a table under the names in its first line; a short row lacks its last cells.

    Raises:
        ValueError: at a line that cannot be read.
    """
    try:
        lines = csv.reader(io.StringIO(text, newline=""))
        names = [from_csv_cell(name) for name in next(lines, [])]
        yield from (dict(zip(names, line, strict=False)) for line in lines if line)
    except csv.Error as error:
        raise ValueError(f"not a table: {error}") from error
