"""PNG files of 32x32 pixels in class folders, in a folder, a zip or a tar archive; and such files in memory.

Archives are read member by member into memory: nothing is unpacked to the disk, and no link in them is followed.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ickd_pl.data.decode import decoded
from ickd_pl.data.listing import list_classes
from ickd_pl.data.sources.facts import SIZE, Facts
from ickd_pl.data.sources.verify import SPLITS, Split, check_counts
from ickd_pl.errors import UserError, near, printable
from ickd_pl.plain import TooMuch, members, open_tar, open_zip, read_bytes

FILE_BYTES = 2**16
"""Bytes of an image file: 32x32 pixels take some 3,000."""
TOTAL = 2**30
"""Bytes that a compressed tar archive may unpack to."""
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def decode_png(content: bytes, name: str) -> NDArray[np.uint8]:
    """A PNG file's content as (3, 32, 32) uint8 RGB.

    Args:
        content: of the file.
        name: names it in an error.

    Raises:
        UserError: it is not a PNG file of 32x32 pixels.
    """
    from PIL import Image

    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "a JPEG file, whose pixels are not the published ones" if content[:3] == b"\xff\xd8\xff" else "no PNG"
        raise UserError(f"{printable(name)} is {kind}: expected a PNG file, which is lossless. Give another copy.")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            size = image.size
            pixels = decoded(image, SIZE) if size == (SIZE, SIZE) else None
    except Exception as error:  # decoders raise many types
        raise UserError(f"{printable(name)} cannot be read as an image ({printable(error)}): get it again.") from error
    if pixels is None:
        raise UserError(f"{printable(name)} has {size[0]}x{size[1]} pixels, expected {SIZE}x{SIZE}. Give another copy.")
    return pixels


def from_folder(path: Path, facts: Facts) -> dict[str, Split]:
    """The images below ``path/{train,test}/<class>/``.

    Raises:
        UserError: an unknown class, wrong numbers of images, or a file that is not such an image.
    """
    folders = split_folders(path)
    names, files, labels = list_classes(path, folders)
    codes = [class_label(name, facts, path) for name in names]
    known = {split: [codes[label] for label in labels[split]] for split in SPLITS}
    check_counts(known, facts, printable(path))
    found = {}
    for split in SPLITS:
        paths = [path / folders[split] / file for file in files[split]]
        found[split] = gathered(((_content(file), str(file)) for file in paths), known[split])
    return found


def files_of(path: Path) -> list[str]:
    """The image files of :func:`from_folder`, relative to ``path``."""
    folders = split_folders(path)
    _, files, _ = list_classes(path, folders)
    return [f"{folders[split]}/{file}" for split in SPLITS for file in files[split]]


def split_folders(path: Path) -> dict[str, str]:
    """The names of the folders of the splits, which may be written in capitals; as usual where there are none."""
    there = sorted((each.name for each in path.iterdir() if each.is_dir()), reverse=True)
    return {split: next((name for name in there if name.lower() == split), split) for split in SPLITS}


def from_zip(path: Path, facts: Facts) -> dict[str, Split]:
    """The images of a zip archive, below ``{train,test}/<class>/`` at any depth.

    Raises:
        UserError: as :func:`from_folder`.
        Exception: the archive is damaged.
    """
    with open_zip(path) as bundle:
        infos = [(info, place_of(info.filename)) for info in bundle.infolist()]
        placed = [(info, place) for info, place in infos if place is not None]
        for info, _ in placed:
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{printable(path)}: {printable(info.filename)} is a link: expected the image itself.")
            _check_size(info.filename, info.file_size)
        labels: dict[str, list[int]] = {split: [] for split in SPLITS}
        for _, (split, name) in placed:
            labels[split].append(class_label(name, facts, path))
        check_counts(labels, facts, printable(path))
        found = {}
        for split in SPLITS:
            own = [info for info, (of, _) in placed if of == split]
            pairs = ((bundle.read(info), f"{path}: {info.filename}") for info in own)
            found[split] = gathered(pairs, labels[split])
        return found


def from_tar(path: Path, facts: Facts) -> dict[str, Split]:
    """The images of a tar archive, plain or compressed, below ``{train,test}/<class>/`` at any depth.

    Raises:
        UserError: as :func:`from_folder`; a link is not read, so that its image is missing.
        Exception: the archive is damaged.
    """
    images: dict[str, list[NDArray[np.uint8]]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    with open_tar(path, TOTAL) as tar:
        for member in members(tar, TOTAL):
            place = place_of(member.name) if member.isreg() else None
            file = tar.extractfile(member) if place is not None else None
            if place is None or file is None:
                continue
            _check_size(member.name, member.size)
            split, name = place
            labels[split].append(class_label(name, facts, path))
            images[split].append(decode_png(file.read(), f"{path}: {member.name}"))
    check_counts(labels, facts, printable(path))
    return {split: Split(np.stack(images[split]), np.array(labels[split], np.uint8)) for split in SPLITS}


def place_of(name: str) -> tuple[str, str] | None:
    """Split and class of an image in an archive; None if its path is not ``{train,test}/<class>/<image>``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if len(parts) < 3 or name.endswith("/") or not parts[-1].lower().endswith(_ENDINGS):
        return None
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    split = parts[-3].lower()
    return None if hidden or split not in SPLITS else (split, parts[-2])


def class_label(name: str, facts: Facts, where: Path) -> int:
    """A class's label.

    Raises:
        UserError: the data set has no class of this name.
    """
    if name not in facts.classes:
        hint = printable(near(name, facts.classes))
        if re.fullmatch("[0-9]{1,3}", name) and int(name) < len(facts.classes):
            known = facts.classes[int(name)]
            hint = f"classes have their names here: if numbers count them in the order of their names, it is {known}."
        raise UserError(f"{printable(where)}: {printable(name)} is not a class of {facts.title}; {hint}")
    return facts.classes.index(name)


def gathered(pairs: Iterable[tuple[bytes, str]], labels: Sequence[int]) -> Split:
    """Decode PNG files.

    Args:
        pairs: content and name of each.
        labels: of each.
    """
    image = np.empty((len(labels), 3, SIZE, SIZE), dtype=np.uint8)
    for target, (content, name) in zip(image, pairs, strict=True):
        target[:] = decode_png(content, name)
    return Split(image, np.array(labels, dtype=np.uint8))


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, FILE_BYTES)
    except TooMuch as error:
        raise UserError(f"{printable(path)} is {error}: expected an image of {SIZE}x{SIZE} pixels.") from error
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read ({error.strerror}).") from error


def _check_size(name: str, size: Any) -> None:
    if size > FILE_BYTES:
        raise TooMuch(f"holds {printable(name[-100:])} of {size:,} bytes, expected at most {FILE_BYTES:,}")
