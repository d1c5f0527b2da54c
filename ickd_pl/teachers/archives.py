"""A teacher's file inside a folder, a tar or a zip archive; archives are read by name and never unpacked."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from ickd_pl.errors import UserError
from ickd_pl.plain import TooMuch, members, open_tar

LIMIT = 2 * 2**30
"""Bytes. The largest teacher has some 100 million; a member that grows beyond this when unpacked is not a teacher."""
TOTAL = 2 * LIMIT
"""Bytes that a compressed tar archive may unpack to."""


_TOO_LARGE = f"holds a file of more than {LIMIT >> 30} GiB, which is not a teacher"


class MemberError(UserError):
    """The archive is damaged or does not have the file; the message leaves out the archive's name."""


def is_archive(path: Path) -> bool:
    """Whether a file is a tar or zip archive, by content; not torch's ``.pth``, a zip file with a ``data.pkl``."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return not any(name.endswith("/data.pkl") for name in archive.namelist())
        with open_tar(path, TOTAL):
            return True
    except Exception:  # each kind of archive and compression raises its own types
        return False


def take_member(path: Path, endings: list[str], target: Path) -> str:
    """Copy one file of an archive to ``target``; the archive's own paths are never written to.

    Args:
        path: a tar archive (plain or compressed) or a zip archive.
        endings: accepted endings of the member's path, the preferred one first.
        target: the file to write.

    Returns:
        The member's path in the archive.

    Raises:
        MemberError: it is not an archive, is damaged, or has no such file or several.
        OSError: the target cannot be written.
    """
    if not is_archive(path):
        raise MemberError(f"is not a tar or zip archive (it starts with {_start(path)!r})")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bundle:
                infos = {info.filename: info for info in bundle.infolist() if not info.is_dir()}
                name = best(infos, endings)
                if infos[name].file_size > LIMIT:
                    raise MemberError(_TOO_LARGE)
                _copy(lambda: bundle.open(infos[name]), target)
            return name
        with open_tar(path, TOTAL) as archive:
            # Regular files only: a link could point to any path.
            found = {member.name: member for member in members(archive, LIMIT) if member.isreg()}
            name = best(found, endings)
            _copy(lambda: archive.extractfile(found[name]), target)
        return name
    except (MemberError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # gzip.BadGzipFile, errors of tarfile and bz2
            raise MemberError(f"is a damaged archive ({error})") from error
        raise
    except TooMuch as error:
        raise MemberError(str(error)) from error
    except Exception as error:  # each kind of archive and compression raises its own types
        raise MemberError(f"is a damaged archive ({' '.join(str(error).split()) or type(error).__name__})") from error


def best(names: Iterable[str], endings: list[str]) -> str:
    """The one path with an accepted ending: with the first ending that any path has, then the least deep one.

    Raises:
        MemberError: there is none, or several are equally good.
    """
    every = list(names)
    for ending in endings:
        found = [name for name in every if f"/{name}".endswith(f"/{ending}")]
        least = min((name.count("/") for name in found), default=0)
        found = [name for name in found if name.count("/") == least]
        if len(found) > 1:
            raise MemberError(f"holds several files that may be meant: {_shown(sorted(found))}")
        if found:
            return found[0]
    weights = sorted(name for name in every if name.endswith((".pth", ".pt")))
    has = f"it has {_shown(weights)}" if weights else "it has no .pth file"
    raise MemberError(f"holds no {' or '.join(endings)}; {has}")


def _shown(names: list[str]) -> str:
    """A few names, with control characters escaped."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:3]) + ", ..." * (len(names) > 3)


def _copy(opened: Callable[[], IO[bytes] | None], target: Path) -> None:
    source = opened()
    if source is None:
        raise MemberError("is a damaged archive (a file without content)")
    with source, target.open("wb") as out:
        while block := source.read(1 << 20):
            out.write(block)
            if out.tell() > LIMIT:
                raise MemberError(_TOO_LARGE)


def take_from_folder(folder: Path, endings: list[str], target: Path) -> str:
    """Copy the one file below a folder whose path has an accepted ending.

    Returns:
        The file's path.

    Raises:
        MemberError: there is none, or several are equally good.
        OSError: it cannot be read, or the target cannot be written.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.pth")) if file.is_file()}
    name = best(files, endings)
    shutil.copyfile(files[name], target)
    return str(files[name])


def _start(path: Path) -> str:
    with path.open("rb") as file:
        return " ".join(file.read(40).decode("latin-1").split())[:30]
