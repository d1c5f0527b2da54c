"""CIFAR in one ``.npz`` file: arrays of numbers and texts, read without numpy's pickles.

Keys: ``x_train`` (50000, 32, 32, 3) uint8, ``y_train`` (50000,) or (50000, 1) integer, ``x_test`` and ``y_test``
likewise, and, if the labels are not in the order of the class names, ``classes`` (K,) text.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ickd_pl.data.sources.facts import SIZE, Facts
from ickd_pl.data.sources.png import class_label
from ickd_pl.data.sources.verify import SPLITS, Split
from ickd_pl.errors import UserError, printable
from ickd_pl.files import replacing
from ickd_pl.plain import TooMuch, open_zip

_AT_ONCE = 2**20
_TEXTS = 2**16  # bytes of an array of texts


def from_npz(
    path: Path, facts: Facts, splits: tuple[str, ...] = tuple(SPLITS), source: str | None = None
) -> dict[str, Split]:
    """The images of some splits.

    Args:
        path: of the file.
        facts: of the data set.
        splits: those that are needed.
        source: as :func:`write_npz` must have kept it; None: it does not matter.

    Raises:
        UserError: an array is missing, or has another shape or type than expected; or another source was kept.
        Exception: the file is damaged.
    """
    found = {}
    with open_zip(path) as bundle:
        classes = _array(bundle, "classes", path)
        codes = None
        if source is not None and str(_array(bundle, "source", path)) != source:
            raise UserError(
                f"{printable(path)} has been replaced, by the images of another source: give each archive a root of "
                "its own."
            )
        if classes is not None and classes.dtype.kind == "U" and classes.shape == (len(facts.classes),):
            codes = np.array([class_label(str(name), facts, path) for name in classes], np.uint8)
        for split in splits:
            image, label = (_array(bundle, f"{kind}_{split}", path) for kind in "xy")
            if image is None or label is None:
                have = ", ".join(printable(name) for name in bundle.namelist()[:8])
                raise UserError(f"{printable(path)} lacks x_{split} or y_{split}; it has {have or 'nothing'}.")
            if image.dtype != np.uint8 or image.shape[1:] != (SIZE, SIZE, 3):
                raise _unlike(path, f"x_{split}", image, f"uint8 (N, {SIZE}, {SIZE}, 3)")
            if label.shape == (len(image), 1):  # as Keras has it
                label = label.reshape(-1)
            if label.dtype.kind not in "iu" or label.shape != image.shape[:1]:
                raise _unlike(path, f"y_{split}", label, f"integers ({len(image)},)")
            label = checked_labels(label, facts, f"{path}: y_{split}")
            found[split] = Split(
                np.ascontiguousarray(image.transpose(0, 3, 1, 2)), label if codes is None else codes[label]
            )
    return found


def checked_labels(label: NDArray[Any], facts: Facts, where: str) -> NDArray[np.uint8]:
    """Labels as uint8.

    Raises:
        UserError: one is not a class's.
    """
    most = len(facts.classes) - 1
    if len(label) and not 0 <= int(label.min()) <= int(label.max()) <= most:
        came = f"{int(label.min())} to {int(label.max())}"
        raise UserError(f"{printable(where)} must be from 0 to {most}, got {came}. Give another copy.")
    return label.astype(np.uint8)


def write_npz(path: Path, splits: dict[str, Split], facts: Facts, source: str) -> None:
    """Write a file for :func:`from_npz`, atomically.

    Args:
        path: of the file.
        splits: "train" and "test".
        facts: of the data set.
        source: text that is kept beside the images, for :func:`source_of`.

    Raises:
        UserError: it cannot be written.
    """
    arrays: dict[str, Any] = {"classes": np.array(facts.classes), "source": np.array(source)}
    for name, split in splits.items():
        arrays |= {f"x_{name}": np.ascontiguousarray(split.image.transpose(0, 2, 3, 1)), f"y_{name}": split.label}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def source_of(path: Path) -> str | None:
    """The text that :func:`write_npz` kept; None if there is none, or the file is damaged or missing."""
    try:
        with open_zip(path) as bundle:
            source = _array(bundle, "source", path)
            return None if source is None else str(source)
    except Exception:  # whatever is wrong with it
        return None


def _array(bundle: zipfile.ZipFile, key: str, path: Path) -> NDArray[Any] | None:
    """An array of numbers or texts; None if there is none with this key. Its size is known before it is read."""
    try:
        info = bundle.getinfo(f"{key}.npy")
    except KeyError:
        return None
    with bundle.open(info) as file:
        version = np.lib.format.read_magic(file)
        reading = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reading(file)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        most = 2 * 50_000 * 3 * SIZE**2 if dtype.kind in "iu" else _TEXTS
        if dtype.kind not in "iuU" or fortran or len(shape) > 4:
            raise UserError(f"{printable(path)}: {key} must be an array of integers or texts, got {dtype} {shape}.")
        if size > most or info.file_size > most + 2**16:
            raise TooMuch(f"holds {key} of {max(size, info.file_size):,} bytes, expected at most {most:,}")
        return np.frombuffer(_read(file, size), dtype).reshape(shape)


def _read(file: IO[bytes], size: int) -> bytearray:
    content = bytearray()
    while len(content) < size:
        block = file.read(min(_AT_ONCE, size - len(content)))
        if not block:
            raise EOFError("an array is cut off")
        content += block
    while file.read(_AT_ONCE):  # to the end, where the checksum is compared
        pass
    return content


def _unlike(path: Path, key: str, came: NDArray[Any], expected: str) -> UserError:
    return UserError(f"{printable(path)}: {key} must be {expected}, got {came.dtype} {came.shape}.")
