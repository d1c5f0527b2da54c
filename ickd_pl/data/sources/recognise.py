"""What a file or folder with CIFAR's images is, by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Literal

from ickd_pl.data.cache import key_of
from ickd_pl.data.given import reachable
from ickd_pl.data.sources.facts import Facts
from ickd_pl.data.sources.npz import from_npz
from ickd_pl.data.sources.parquet import from_parquet, parquet_files
from ickd_pl.data.sources.png import files_of, from_folder, from_tar, from_zip, place_of, split_folders
from ickd_pl.data.sources.verify import SPLITS, Split
from ickd_pl.errors import UserError, printable
from ickd_pl.plain import TooMuch, members, open_regular, open_tar, open_zip

Kind = Literal["official", "folder", "zip", "tar", "npz", "parquet"]
_READERS = {"folder": from_folder, "zip": from_zip, "tar": from_tar, "parquet": from_parquet}
TITLES: dict[Kind, str] = {
    "official": "official archive or folder",
    "folder": "folder of PNG files",
    "zip": "zip archive of PNG files",
    "tar": "tar archive of PNG files",
    "npz": ".npz file",
    "parquet": "folder of parquet files",
}
FORMS = (
    "the official archive or its folder, {train,test}/<class>/*.png as a folder, zip or tar, a folder of parquet files "
    "with columns img and label, or an .npz with x_train, y_train, x_test and y_test"
)
"""Every form that is read, for errors and help."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_LARGEST, _TOTAL = 2**28, 2**30
_LOOK = 1000  # members of a tar archive that are looked at


def recognise(path: Path, base_folder: str, official: Collection[str]) -> Kind:
    """The form of a file or folder, by its content; its name does not matter.

    Args:
        path: it exists.
        base_folder: name of the official archive's folder.
        official: names of the files with images in it.

    Raises:
        UserError: it is none of the forms; with what it has.
    """
    with reachable("archive", path):  # also a pipe, which would hang
        if path.is_dir():
            return _folder(path, base_folder, official)
        with open_regular(path) as file:
            start = file.read(262)
    if start[:4] == b"PAR1":
        raise UserError(f"archive: {printable(path)} is one parquet file: give the folder of training and test images.")
    if start[:4] == b"PK\x03\x04":
        return _zip(path)
    if start.startswith(_COMPRESSED) or start[257:] == b"ustar":
        return _tar(path, base_folder, official)
    raise _unknown(path, f"a file that starts with {start[:8]!r}")


def read_source(
    kind: Kind,
    path: Path,
    facts: Facts,
    splits: tuple[str, ...] = tuple(SPLITS),
    repair: str = "get it again",
    key: str | None = None,
) -> dict[str, Split]:
    """The images of a source that is not the official one; neither verified nor in order.

    Args:
        kind: its form.
        path: of it.
        facts: of the data set.
        splits: those that are needed; both are always read, except from an ``.npz``.
        repair: what to do with a damaged one.
        key: of the source that an ``.npz`` must be of, where it was prepared; None: it does not matter.

    Raises:
        UserError: it is damaged, or lacks something; with what.
    """
    try:
        return from_npz(path, facts, splits, key) if kind == "npz" else _READERS[kind](path, facts)
    except UserError:
        raise
    except TooMuch as error:
        raise UserError(f"{printable(path)} {error}: it is not {facts.title}. Give archive= another copy.") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{printable(path)} cannot be read ({printable(reason)}): {repair}.") from error
    except Exception as error:  # each kind of archive, compression and array raises its own types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{printable(path)} is damaged ({printable(reason)}): {repair}.") from error


def source_key(kind: Kind, path: Path) -> str:
    """Hash of path, size and time of every file of a source: it says whether a source was read before.

    Raises:
        UserError: a file is missing.
    """
    names: list[str]
    folder = path
    with reachable("archive", path):
        if kind == "folder":
            names = files_of(path)
        elif kind == "parquet":
            names = [file.relative_to(path).as_posix() for file in parquet_files(path)]
        else:
            folder, names = path.parent, [path.name]
    return hashlib.sha256(f"{kind} {folder.resolve()} {key_of(folder, names, 0)}".encode(errors="replace")).hexdigest()


def _folder(path: Path, base_folder: str, official: Collection[str]) -> Kind:
    for inner in (path / base_folder, path):
        if any((inner / name).is_file() for name in official):
            return "official"
    if all((path / folder).is_dir() for folder in split_folders(path).values()) and not parquet_files(path):
        return "folder"
    if parquet_files(path):
        return "parquet"
    names = sorted(printable(each.name) for each in path.iterdir())
    shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
    raise _unknown(path, f"a folder with {shown or 'nothing'}")


def _zip(path: Path) -> Kind:
    try:
        with open_zip(path) as bundle:
            names = [info.filename for info in bundle.infolist()]
    except Exception as error:  # zipfile raises many types, also for a name that is not what its flag says
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"archive: {printable(path)} is a damaged zip archive ({printable(reason)}): get it again."
        ) from error
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(place_of(name) is not None for name in names):
        return "zip"
    raise _unknown(path, f"a zip archive with {_first(names)}")


def _tar(path: Path, base_folder: str, official: Collection[str]) -> Kind:
    names = []
    try:
        with open_tar(path, _TOTAL) as tar:
            for member in members(tar, _LARGEST):
                inside = PurePosixPath(member.name)
                if member.isreg() and inside.name in official and inside.parent.name == base_folder:
                    return "official"
                if member.isreg() and place_of(member.name) is not None:
                    return "tar"
                names.append(member.name)
                if len(names) == _LOOK:
                    break
    except Exception:  # each kind of archive and compression raises its own types
        return "official"  # its md5 says that it is damaged, and what was expected
    raise _unknown(path, f"a tar archive with {_first(names)}")


def _first(names: list[str]) -> str:
    return ", ".join(printable(name) for name in names[:3]) + ", ..." * (len(names) > 3) if names else "nothing"


def _unknown(path: Path, came: str) -> UserError:
    return UserError(f"archive: {printable(path)} must be {FORMS}; got {came}.")
