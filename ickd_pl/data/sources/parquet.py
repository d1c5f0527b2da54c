"""CIFAR as Hugging Face stores it: parquet files with columns ``img`` (PNG files) and the label. Needs pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ickd_pl.data.sources.facts import Facts
from ickd_pl.data.sources.npz import checked_labels
from ickd_pl.data.sources.png import FILE_BYTES, gathered
from ickd_pl.data.sources.verify import SPLITS, Split, check_counts
from ickd_pl.errors import UserError, printable
from ickd_pl.plain import TooMuch, open_regular

LARGEST = 2**29
"""Bytes that the columns of one row group may unpack to: all images have some 150 million."""
_ROWS = 1000


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files of a folder and of the folders in it, by content, sorted; links to folders are not followed."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]
    return [
        path
        for each in (folder, *inner)
        for path in sorted(each.iterdir())
        if path.is_file() and not path.name.startswith(".") and is_parquet(path)
    ]


def is_parquet(path: Path) -> bool:
    """Whether a file begins as a parquet file does."""
    try:
        with open_regular(path) as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def from_parquet(path: Path, facts: Facts) -> dict[str, Split]:
    """The images of the files of a folder.

    A file is of the split that its name, or its folder's, begins with (``train-00000-of-00001.parquet``,
    ``test/0000.parquet``); where one has neither, of the split with its number of images.

    Raises:
        UserError: pyarrow is missing, a split has no file, a column is missing, wrong numbers of images, or an image
            that is not a PNG file.
        Exception: a file is damaged.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{printable(path)} is parquet, which needs pyarrow: pip install '.[parquet]' in the clone."
        ) from error
    opened = [(file, parquet.ParquetFile(file)) for file in parquet_files(path)]
    tables: dict[str, list[tuple[Path, Any]]] = {split: [] for split in SPLITS}
    for file, table in opened:
        split = _split_of(file, path, table.metadata.num_rows, facts)
        tables[split].append((file, table))
    labels = {split: [k for file, t in own for k in _labels(file, t, facts)] for split, own in tables.items()}
    check_counts(labels, facts, printable(path))
    return {
        split: gathered((pair for file, table in own for pair in _images(file, table)), labels[split])
        for split, own in tables.items()
    }


def _split_of(file: Path, top: Path, rows: int, facts: Facts) -> str:
    parts = file.relative_to(top).parts
    by_name = [split for part in reversed(parts) for split in SPLITS if part.lower().startswith(split)]
    by_count = [split for split in SPLITS if facts.counts[split] == rows]
    if not by_name and len(by_count) != 1:
        expected = " or ".join(f"{facts.counts[split]:,} {word} images" for split, word in SPLITS.items())
        raise UserError(
            f"{printable(file)} has {rows:,} rows, expected {expected}: let its name begin with train or test."
        )
    return (by_name or by_count)[0]


def _labels(file: Path, table: Any, facts: Facts) -> list[int]:
    names = table.schema_arrow.names
    for name in ("img", facts.label_column):
        if name not in names:
            have = printable(", ".join(names[:8]))
            raise UserError(f"{printable(file)} has no column {name}; it has {have}.")
    if table.metadata.num_rows > 2 * max(facts.counts.values()):
        raise TooMuch(f"{printable(file)} has {table.metadata.num_rows:,} rows")
    for group in range(table.num_row_groups):
        if (size := table.metadata.row_group(group).total_byte_size) > LARGEST:
            raise TooMuch(f"{printable(file)} has a row group of {size:,} bytes, expected at most {LARGEST:,}")
    found: list[int] = []
    for batch in table.iter_batches(_ROWS, columns=[facts.label_column]):
        values = np.asarray(batch.column(0).to_pylist())
        if values.dtype.kind not in "iu":
            raise UserError(f"{printable(file)}: {facts.label_column} must be integers, got {values.dtype}.")
        found += checked_labels(values, facts, f"{file}: {facts.label_column}").tolist()
    return found


def _images(file: Path, table: Any) -> Any:
    number = 0
    for batch in table.iter_batches(_ROWS, columns=["img"]):
        for cell in batch.column(0):
            value = cell.as_py()
            content = value.get("bytes") if isinstance(value, dict) else value
            name = f"{file}: img of row {number}"
            if not isinstance(content, bytes) or len(content) > FILE_BYTES:
                raise UserError(f"{printable(name)} must be a PNG file of at most {FILE_BYTES:,} bytes.")
            yield content, name
            number += 1
