"""Files that may be a stranger's: YAML, JSON and archives read within limits, and CSV that is safe to open."""

from ickd_pl.plain.archive import members, open_tar, open_zip
from ickd_pl.plain.read import (
    TooMuch,
    check_yaml,
    open_regular,
    parse_yaml,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
)
from ickd_pl.plain.table import CSV_BYTES, csv_cell, csv_rows, csv_text, from_csv_cell

__all__ = [
    "CSV_BYTES",
    "TooMuch",
    "check_yaml",
    "csv_cell",
    "csv_rows",
    "csv_text",
    "from_csv_cell",
    "members",
    "open_regular",
    "open_tar",
    "open_zip",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
]
