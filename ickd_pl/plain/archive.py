"""Tar and zip archives that may be hostile: what a small file unpacks to is bounded, before it is unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ickd_pl.errors import printable
from ickd_pl.plain.read import TooMuch, open_regular

MOST_MEMBERS = 100_000
"""Members of an archive: each takes about 1 KB of memory."""
# tarfile reads some headers whole; what a member holds is read in smaller pieces.
_AT_ONCE, _PIECE = 2**22, 2**20
# Bytes of a zip archive's directory: some 100 for each member.
_DIRECTORY = 2**25
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}

if TYPE_CHECKING:
    from typing_extensions import Buffer


@contextmanager
def open_tar(path: Path, total: int) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, plain or compressed by gzip, bzip2 or xz, for :func:`members`.

    What a member holds, from ``extractfile``, may be read as one or in parts; only headers are bounded.

    Args:
        path: the archive.
        total: bytes that a compressed one may unpack to.

    Raises:
        OSError: it is not a regular file, or a damaged compressed one.
        TooMuch: it unpacks to more; also later, while it is read.
        tarfile.TarError, EOFError, zlib.error, lzma.LZMAError: it is not an archive, or damaged; also later.
    """
    with open_regular(path) as file:
        opener: Any = _OPENERS.get(file.read(2))
        file.seek(0)
        unpacked = opener(file) if opener else file
        bounded: Any = _Bounded(unpacked, total if opener else math.inf)
        with _Tar.open(fileobj=bounded, mode="r:") as tar:
            yield tar


def members(tar: tarfile.TarFile, largest: int) -> Iterator[tarfile.TarInfo]:
    """The members of an archive of :func:`open_tar`, in its order.

    Raises:
        TooMuch: one says that it has more than ``largest`` bytes, before they are read; or there are too many.
    """
    for number, member in enumerate(tar):
        if number >= MOST_MEMBERS:
            raise TooMuch(f"holds more than {MOST_MEMBERS:,} files")
        if member.size > largest:
            raise TooMuch(
                f"holds {printable(member.name[-100:])} of {member.size:,} bytes, expected at most {largest:,}"
            )
        yield member


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; its directory is bounded, a member's size must be checked before it is read.

    Raises:
        OSError: it is not a regular file.
        TooMuch: it says that it has far more members than ``MOST_MEMBERS``.
        Exception: it is not a zip archive, or damaged.
    """
    with open_regular(path) as file:
        pieces: Any = _Pieces(file)
        with zipfile.ZipFile(pieces) as bundle:
            yield bundle


class _Pieces:
    """A file that is read in pieces; zipfile reads the whole directory as one."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.tell, self.seek, self.seekable = file.tell, file.seek, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY:
            raise TooMuch(f"holds a directory of {size:,} bytes")
        content: bytes = self._file.read(size)
        return content


class _Tar(tarfile.TarFile):
    """An archive whose members are read in pieces however much is asked for, since headers of that size are refused."""

    def extractfile(self, member: str | tarfile.TarInfo) -> IO[bytes] | None:
        file = super().extractfile(member)
        return None if file is None else io.BufferedReader(_InPieces(file), _PIECE)


class _InPieces(io.RawIOBase):
    """A member's content; at most one piece for each call."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        return int(self._file.readinto(memoryview(buffer)[:_PIECE]))

    def readall(self) -> bytes:
        content = bytearray()
        while piece := self._file.read(_PIECE):
            content += piece
        return bytes(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Bounded:
    """A file of which only the first bytes can be reached, in small pieces."""

    def __init__(self, file: Any, total: float) -> None:
        self._file, self._total = file, total
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _AT_ONCE:
            raise TooMuch(f"holds a header of {size:,} bytes")
        self._check(self._file.tell() + size)
        content: bytes = self._file.read(size)
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        self._check(position)
        return int(self._file.seek(position, whence))

    def _check(self, position: int) -> None:
        # The reader looks a little beyond the end.
        if position > self._total + 2 * tarfile.RECORDSIZE:
            raise TooMuch(f"unpacks to more than {self._total:,} bytes")
