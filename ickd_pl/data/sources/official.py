"""The official archive's files: read out of an archive or a folder, and fetched, with nothing left half done."""

from __future__ import annotations

import hashlib
import http.client
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ickd_pl.errors import UserError
from ickd_pl.files import replacing
from ickd_pl.plain import members, open_tar, read_bytes

TIMEOUT = 30.0
"""Seconds without a response after which a download fails."""
LARGEST, TOTAL = 2**28, 2**30
"""Bytes of one file, and of all that an archive unpacks to; the published ones have 155 and 187 million."""


def md5_of(path: Path) -> str | None:
    """md5 of a file, None if it does not exist."""
    if not path.is_file():
        return None
    digest = hashlib.md5()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def from_folder(folder: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if (folder / name).is_file():
            yield name, read_bytes(folder / name, LARGEST)


def from_tar(path: Path, base_folder: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The named regular files of an archive. Nothing else in it is read, and none of its paths is written to."""
    with open_tar(path, TOTAL) as tar:
        for member in members(tar, LARGEST):
            path_inside = PurePosixPath(member.name)
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None and path_inside.name in names and path_inside.parent.name == base_folder:
                yield path_inside.name, file.read()


@contextmanager
def leaving_no_folder(folder: Path) -> Iterator[None]:
    """On failure remove the folder and its parents, if they were created here and are empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Set a timeout for all sockets that are opened inside."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(spec: Any, root: Path, title: str, take: Callable[[Path], None]) -> None:
    """Download into a temporary folder inside ``root``, so that no partial file ever has a final name.

    Args:
        spec: torchvision's class of the data set.
        root: folder.
        title: of the data set, for an error.
        take: called with the archive, whose md5 is right.

    Raises:
        UserError: it cannot be downloaded, or ``take`` fails; then the archive is kept in ``root``, where it is found.
    """
    from torchvision.datasets.utils import download_url

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            with timeout(TIMEOUT):
                download_url(spec.url, folder, spec.filename, spec.tgz_md5)
            archive = Path(folder) / spec.filename
            try:
                take(archive)
            except UserError as error:  # whatever is in the way, the archive is the published one
                archive.replace(root / spec.filename)
                raise UserError(f"{error} The downloaded archive is kept as {root / spec.filename}.") from error
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"{title} cannot be downloaded from {spec.url} into {root} ({error}). Without a network give archive=, a "
            f"local {spec.filename}, the unpacked folder or another form of the images, or put it into {root}."
        ) from error
