"""The file that keeps the decoded images of a folder: their bytes one after another, then a line of JSON about them.

It is written in parts under a temporary name, by one process at a time, so that a killed process leaves nothing that
would be used. It is read in parts, not mapped: what is read is not counted as this process's memory, the kernel keeps
it as long as there is room, and a file that another program cuts off ends in an error instead of a signal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from ickd_pl.data.augment import ChannelStats, channel_stats
from ickd_pl.data.decode import quiet_about_size
from ickd_pl.data.images import LazyImages, Pixels, parts
from ickd_pl.errors import UserError, printable
from ickd_pl.files import lock_where_possible, replacing
from ickd_pl.plain import open_regular

# Changes with the rules by which images are decoded, and with the file's layout.
_FORMAT = 3
_NOTE = 4096  # bytes of the line at the end, at most


class Stored(NamedTuple):
    """Images with their mean and std per channel."""

    image: Pixels
    mean: list[float]
    std: list[float]


class Cache:
    """The cache file of one split.

    Args:
        path: of the file.
        key: of what the images depend on; see :func:`key_of`.
        source: the images, decoded when they are read.
    """

    def __init__(self, path: Path, key: str, source: LazyImages) -> None:
        self.path, self._key, self._source = path, key, source

    def images(self, in_memory: bool) -> Stored:
        """The images from the file, which is made if it is missing, damaged or of other images.

        Args:
            in_memory: as one tensor; the file is then done without where it cannot be written. Else lazily.

        Raises:
            UserError: an image that cannot be decoded, or a file that cannot be written.
        """
        found = self.load(in_memory)
        if found is not None:
            return found
        folder = self.path.parent
        waits = partial(rank_zero_info, f"waiting for another process that decodes images into {printable(folder)}")
        with lock_where_possible(folder / "lock", waits) as alone:
            found = self.load(in_memory)  # another process may have made it
            if found is None:
                if alone:
                    for left in folder.glob(f".{self.path.name}.*.tmp"):  # by a killed process
                        left.unlink(missing_ok=True)
                found = self._make(in_memory)
        return found

    def load(self, in_memory: bool) -> Stored | None:
        """The images from the file; None if it is missing, damaged or of other images. All of it is checked."""
        try:
            file = ImageFile(self.path, self._source.shape)
            note = json.loads(file.note())
            mean, std = note["mean"], note["std"]
            if note["key"] != self._key or [type(value) for value in (*mean, *std)] != [float] * 6:
                return None
            lazy = LazyImages(file, self._source.shape)
            whole = torch.empty(lazy.shape, dtype=torch.uint8) if in_memory else None
            begin = checksum = 0
            for part in parts(lazy):
                checksum = zlib.crc32(part.numpy().data, checksum)
                if whole is not None:
                    whole[begin : begin + len(part)] = part
                    begin += len(part)
            return Stored(lazy if whole is None else whole, mean, std) if checksum == note["crc32"] else None
        except Exception:  # whatever is wrong with a cache, the images themselves are still there
            return None

    def _make(self, in_memory: bool) -> Stored:
        with quiet_about_size():
            if not in_memory:
                try:
                    mean, std = self._save(self._source)
                except UserError as error:
                    if not str(error).startswith("cannot write"):
                        raise
                    raise UserError(f"{error}, or set data.cache to memory or none") from error
                return Stored(LazyImages(ImageFile(self.path, self._source.shape), self._source.shape), mean, std)
            whole = self._source[:]
        try:
            return Stored(whole, *self._save(whole))
        except UserError:  # not writable, or the disk is full
            return Stored(whole, *channel_stats(whole))

    def _save(self, images: Pixels) -> tuple[list[float], list[float]]:
        """Write the file, and return mean and std."""
        stats, checksum = ChannelStats(), 0
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            if shutil.disk_usage(self.path.parent).free < math.prod(images.shape):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for part in parts(images):
                pixels = part.numpy().data
                file.write(pixels)
                checksum = zlib.crc32(pixels, checksum)
                stats.add(part)
            mean, std = stats.mean_std()
            note = {"key": self._key, "crc32": checksum, "mean": mean, "std": std}
            file.write(json.dumps(note).encode())
        with suppress(OSError):
            self.path.with_suffix(".pt").unlink()  # of version 0.1, which kept the same images in another layout
        return mean, std


class ImageFile:
    """Reads images out of a cache file, which stays the same one where another process replaces it.

    Args:
        path: of the file.
        shape: (N, 3, H, W) of the images in it.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self._path, self._shape = path, tuple(shape)
        self._file = open_regular(path)

    def __call__(self, rows: list[int], into: Tensor) -> None:
        """Read the images of these numbers into (B, 3, H, W) uint8."""
        each = math.prod(self._shape[1:])
        for row, image in zip(rows, into.view(len(rows), each).numpy(), strict=True):
            self._fill(memoryview(image), row * each)

    def note(self) -> bytes:
        """What stands behind the images.

        Raises:
            UserError: not a short line.
        """
        begin, size = math.prod(self._shape), os.fstat(self._file.fileno()).st_size
        if not 0 < size - begin <= _NOTE:
            raise UserError(f"{printable(self._path)} is not a cache of these images")
        note = bytearray(size - begin)
        self._fill(memoryview(note), begin)
        return bytes(note)

    def _fill(self, target: memoryview, begin: int) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._file.fileno(), [target[done:]], begin + done)
            except OSError as error:
                raise UserError(f"{printable(self._path)} cannot be read ({error.strerror}): delete it") from error
            if count == 0:
                raise UserError(f"{printable(self._path)} was cut off while it was in use: delete it and start again")
            done += count

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageFile, (self._path, self._shape)


def key_of(folder: Path, names: Sequence[str], size: int) -> str:
    """Hash of what the decoded images depend on: path, size and times of every file, and the image size.

    The time of the last change of any kind is among them: it also moves where a tool sets the other one back.

    Raises:
        UserError: a file that is missing, by its name.
    """
    digest = hashlib.sha256(f"{_FORMAT} {size}\n".encode())
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise UserError(f"{printable(folder / name)} cannot be read ({error.strerror}).") from error
        words = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
        digest.update(words.encode(errors="surrogateescape"))
    return digest.hexdigest()
