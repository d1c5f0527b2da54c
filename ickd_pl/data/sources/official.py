"""The official archive's files: read out of an archive or a folder, and fetched, with nothing left half done."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import pickle
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ickd_pl.data.sources.verify import Split
from ickd_pl.errors import UserError, printable
from ickd_pl.files import replacing
from ickd_pl.plain import TooMuch, members, open_tar, read_bytes

TIMEOUT = 30.0
"""Seconds without a response after which a download fails."""
LARGEST, TOTAL = 2**28, 2**30
"""Bytes of one file, and of all that an archive unpacks to; the published ones have 155 and 187 million."""


class Official:
    """The official files of a data set: URLs, names and md5 sums are torchvision's.

    Args:
        title: name of the data set, and of torchvision's class.
        root: folder that holds, or will hold, their folder.

    Attributes:
        spec: torchvision's class.
        folder: of the files.
        sums: md5 of every file that is needed, by its name.
        images: names of the files with images.
    """

    def __init__(self, title: str, root: Path) -> None:
        from torchvision import datasets

        self.spec: Any = getattr(datasets, title)
        self.folder = root / str(self.spec.base_folder)
        meta = self.spec.meta
        self.images = [name for name, _ in (*self.spec.train_list, *self.spec.test_list)]
        self.sums: dict[str, str] = {
            **dict(self.spec.train_list),
            **dict(self.spec.test_list),
            meta["filename"]: meta["md5"],
        }

    def corrupt(self, what: str, expected: str, found: str) -> str:
        """A message for a file with another md5."""
        return (
            f"{what} is corrupt: expected md5 {expected}, found {found}. Delete it, or give archive=, a good "
            f"{self.spec.filename} or the unpacked folder."
        )

    def take(self, source: Path) -> None:
        """Copy the needed files out of an archive or a folder, each checked before it is stored.

        Raises:
            UserError: a corrupt or a missing file, or one that cannot be written.
        """
        spec, sums, folder = self.spec, self.sums, self.folder
        missing = set(sums)
        try:
            for name, content in self._given(source):
                if (found := hashlib.md5(content).hexdigest()) != sums[name]:
                    raise UserError(self.corrupt(f"{source} ({name})", sums[name], found))
                write_file(folder / name, content)
                missing.discard(name)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, TooMuch, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # not that gzip or bz2 find it damaged
                reason = f"{error.strerror}): allow access to it, or give another copy."
                raise UserError(f"{printable(error.filename or source)} cannot be read ({reason}") from error
            reason = str(error).partition(":\n")[0]
            raise UserError(self.corrupt(f"{source} ({reason})", spec.tgz_md5, str(md5_of(source)))) from error
        if missing:
            raise UserError(f"{source} lacks {', '.join(sorted(missing))}; expected {spec.filename} as published.")

    def _given(self, source: Path) -> Iterator[tuple[str, bytes]]:
        if not source.is_dir():
            yield from from_tar(source, self.spec.base_folder, list(self.sums))
            return
        inner = source / self.spec.base_folder
        yield from from_folder(inner if inner.is_dir() else source, list(self.sums))

    def load(self, name: str) -> dict[str, Any]:
        """One checked file. Only bytes with the published md5 reach the unpickler.

        Raises:
            UserError: it is missing or corrupt.
        """
        path, expected = self.folder / name, self.sums[name]
        try:
            content = read_bytes(path, LARGEST)
        except (OSError, TooMuch) as error:
            raise UserError(f"{path} cannot be read ({error}). Call prepare_data() first.") from error
        if (found := hashlib.md5(content).hexdigest()) != expected:
            raise UserError(self.corrupt(str(path), expected, found))
        entry: dict[str, Any] = pickle.loads(content, encoding="latin1")
        return entry

    def split(self, split: str) -> Split:
        """The images of "train" or "test", in the order of the files."""
        listed = self.spec.train_list if split == "train" else self.spec.test_list
        entries = [self.load(name) for name, _ in listed]
        pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        labels = [label for entry in entries for label in entry["fine_labels" if "fine_labels" in entry else "labels"]]
        return Split(pixels, np.array(labels, dtype=np.uint8))


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
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110
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
