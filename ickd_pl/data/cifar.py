"""CIFAR-100 and CIFAR-10: downloaded, from a local archive or from an unpacked folder, always with md5 checks."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import pickle
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch

from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.images import Images
from ickd_pl.errors import UserError
from ickd_pl.files import replacing
from ickd_pl.plain import TooMuch, members, open_tar, read_bytes

TIMEOUT = 30.0
"""Seconds without a response after which a download fails."""
LARGEST, TOTAL = 2**28, 2**30
"""Bytes of one file, and of all that an archive unpacks to; the published ones have 155 and 187 million."""


class _CIFAR(TensorDataModule):
    """Base class of both data sets. URLs, file names and md5 sums are torchvision's."""

    image_size = 32
    num_available = 50_000
    torchvision_name: ClassVar[str]

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        archive: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_size: int = 0,
        train_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name = self.torchvision_name.lower()
        self.root = root
        self.download = download
        self.archive = archive
        super().__init__(batch_size, eval_batch_size, val_size, train_size, seed)

    def prepare_data(self) -> None:
        """Download or copy the files into ``root`` and check them; Lightning calls this on one rank only.

        Raises:
            UserError: a corrupt file, or a missing one that cannot be obtained; with its name.
        """
        spec, folder = self._spec(), self._folder()
        bad = {name: found for name, md5 in self._sums().items() if (found := _md5_of(folder / name)) != md5}
        if not bad:
            return
        if self.archive is not None:
            with _leaving_no_folder(folder):
                self._take(Path(self.archive).expanduser())
            return
        for name, found in bad.items():
            if found is not None:
                raise UserError(self._corrupt(str(folder / name), self._sums()[name], found))
        local = Path(self.root).expanduser() / spec.filename
        if local.is_file():
            self._take(local)
        elif self.download:
            with _leaving_no_folder(folder):
                self._fetch()
        else:
            raise UserError(
                f"{folder / next(iter(bad))} is missing. Set download=true, or give archive=, a local {spec.filename} "
                "or the unpacked folder."
            )

    def _spec(self) -> Any:
        """torchvision's class: where the files come from, their names and md5 sums."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision_name)

    def _folder(self) -> Path:
        return Path(self.root).expanduser() / str(self._spec().base_folder)

    def _sums(self) -> dict[str, str]:
        """md5 of every file that is needed, by file name."""
        spec = self._spec()
        return {**dict(spec.train_list), **dict(spec.test_list), spec.meta["filename"]: spec.meta["md5"]}

    def _corrupt(self, what: str, expected: str, found: str) -> str:
        return (
            f"{what} is corrupt: expected md5 {expected}, found {found}. Delete it, or give archive=, a good "
            f"{self._spec().filename} or the unpacked folder."
        )

    def _take(self, source: Path) -> None:
        """Copy the needed files out of an archive or a folder, each checked before it is stored."""
        spec, sums, folder = self._spec(), self._sums(), self._folder()
        if source.is_dir():
            inner = source / spec.base_folder
            files = _from_folder(inner if inner.is_dir() else source, list(sums))
        elif source.is_file():
            files = _from_tar(source, spec.base_folder, list(sums))
        else:
            raise UserError(f"archive: {source} does not exist; expected {spec.filename} or the unpacked folder.")
        missing = set(sums)
        try:
            for name, content in files:
                if (found := hashlib.md5(content).hexdigest()) != sums[name]:
                    raise UserError(self._corrupt(f"{source} ({name})", sums[name], found))
                _write(folder / name, content)
                missing.discard(name)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, TooMuch) as error:
            reason = str(error).partition(":\n")[0]
            raise UserError(self._corrupt(f"{source} ({reason})", spec.tgz_md5, str(_md5_of(source)))) from error
        except OSError as error:
            raise UserError(f"{source} cannot be unpacked into {folder}: {error}.") from error
        if missing:
            raise UserError(f"{source} lacks {', '.join(sorted(missing))}; expected {spec.filename} as published.")

    def _fetch(self) -> None:
        """Download into a temporary folder inside ``root``, so that no partial file ever has a final name."""
        from torchvision.datasets.utils import download_url

        spec, root = self._spec(), Path(self.root).expanduser()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
                with _timeout(TIMEOUT):
                    download_url(spec.url, folder, spec.filename, spec.tgz_md5)
                self._take(Path(folder) / spec.filename)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(
                f"{self.torchvision_name} cannot be downloaded from {spec.url} into {root} ({error}). Without a "
                f"network give archive=, a local {spec.filename} or the unpacked folder, or put it into {root}."
            ) from error

    def _load(self, name: str) -> dict[str, Any]:
        """One checked file. Only bytes with the published md5 reach the unpickler."""
        path, expected = self._folder() / name, self._sums()[name]
        try:
            content = read_bytes(path, LARGEST)
        except (OSError, TooMuch) as error:
            raise UserError(f"{path} cannot be read ({error}). Call prepare_data() first.") from error
        if (found := hashlib.md5(content).hexdigest()) != expected:
            raise UserError(self._corrupt(str(path), expected, found))
        entry: dict[str, Any] = pickle.loads(content, encoding="latin1")
        return entry

    def _read(self, split: str) -> Images:
        spec = self._spec()
        entries = [self._load(name) for name, _ in (spec.train_list if split == "train" else spec.test_list)]
        pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        labels = [label for entry in entries for label in entry["fine_labels" if "fine_labels" in entry else "labels"]]
        return Images(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64))

    def _read_class_names(self) -> list[str]:
        meta = self._spec().meta
        return [str(name) for name in self._load(meta["filename"])[meta["key"]]]


class CIFAR100(_CIFAR):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 in 100 classes.

    Args:
        root: folder that holds, or will hold, ``cifar-100-python/``; it may hold ``cifar-100-python.tar.gz`` instead.
        download: fetch what is missing from the internet.
        archive: a local ``cifar-100-python.tar.gz`` or the unpacked folder; missing or corrupt files are taken from it.
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks; None: what suits the device.
        val_size: images split off for validation, class-balanced; 0: validation uses the test images.
        train_size: number of images to train on, class-balanced; None: all that remain.
        seed: for order and augmentation.

    Raises:
        UserError: a size out of its range; in ``prepare_data``, a corrupt file or a missing one, by name.
    """

    torchvision_name = "CIFAR100"
    num_classes = 100
    known_constants = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


class CIFAR10(_CIFAR):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in 10 classes.

    Args:
        root: folder that holds, or will hold, ``cifar-10-batches-py/``; it may hold ``cifar-10-python.tar.gz`` instead.
        download: fetch what is missing from the internet.
        archive: a local ``cifar-10-python.tar.gz`` or the unpacked folder; missing or corrupt files are taken from it.
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks; None: what suits the device.
        val_size: images split off for validation, class-balanced; 0: validation uses the test images.
        train_size: number of images to train on, class-balanced; None: all that remain.
        seed: for order and augmentation.

    Raises:
        UserError: a size out of its range; in ``prepare_data``, a corrupt file or a missing one, by name.
    """

    torchvision_name = "CIFAR10"
    num_classes = 10
    known_constants = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def _md5_of(path: Path) -> str | None:
    """md5 of a file, None if it does not exist."""
    if not path.is_file():
        return None
    digest = hashlib.md5()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _from_folder(folder: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if (folder / name).is_file():
            yield name, read_bytes(folder / name, LARGEST)


def _from_tar(path: Path, base_folder: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The named regular files of an archive. Nothing else in it is read, and none of its paths is written to."""
    with open_tar(path, TOTAL) as tar:
        for member in members(tar, LARGEST):
            path_inside = PurePosixPath(member.name)
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None and path_inside.name in names and path_inside.parent.name == base_folder:
                yield path_inside.name, file.read()


@contextmanager
def _leaving_no_folder(folder: Path) -> Iterator[None]:
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
def _timeout(seconds: float) -> Iterator[None]:
    """Set a timeout for all sockets that are opened inside."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
