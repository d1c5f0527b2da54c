"""Plain data in files, maybe a stranger's: YAML and JSON read within limits, CSV that is safe to open."""

from ickd_pl.plain.read import check_yaml, open_regular, parse_yaml, read_json, read_text, read_yaml
from ickd_pl.plain.table import CSV_BYTES, csv_cell, csv_rows, csv_text, from_csv_cell

__all__ = [
    "CSV_BYTES",
    "check_yaml",
    "csv_cell",
    "csv_rows",
    "csv_text",
    "from_csv_cell",
    "open_regular",
    "parse_yaml",
    "read_json",
    "read_text",
    "read_yaml",
]
