"""Any folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``."""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_pl.data.augment import channel_stats
from ickd_pl.data.base import Images, TensorDataModule
from ickd_pl.data.decode import decode_files
from ickd_pl.data.listing import list_classes, list_images
from ickd_pl.errors import UserError, printable
from ickd_pl.files import replacing
from ickd_pl.plain import open_regular

CACHE_FOLDER = ".ickd_cache"
# Changes with the rules by which images are decoded.
_CACHE_FORMAT = 2
_CACHE_EXTRA = 2**20  # bytes of a cache besides the images


class ImageFolder(TensorDataModule):
    """Images in folders: ``root/train/<class>/*`` and ``root/test/<class>/*``, at any depth below the class.

    Classes are the sorted folder names of ``root/train``; names that begin with a dot are ignored. Images become 8-bit
    RGB as a person sees them: integers of 16 and 32 bits are scaled from the range of their type (65535 becomes 255),
    floating-point values must be from 0 to 1, orientation tags are honoured, and what is transparent is white. Where
    their size differs they are resized to ``image_size`` on both sides (bilinear, antialias). They are kept in memory
    as uint8, and cached in ``root/.ickd_cache/`` if that is writable; the cache is rebuilt if it is damaged or if a
    file is changed, added or removed. Mean and std are those of all images of ``root/train``, with those that
    ``val_size`` and ``train_size`` leave out.

    Symbolic links are followed: ``root``, classes, folders and files may be links, to a data disk for example. A link
    never makes the images of one class another's: one to a folder above is refused, and so is a file that two classes,
    or the training and the test images, come to. A folder that a class comes to twice counts once.

    Args:
        root: the folder; its name is the name of the data set.
        image_size: height and width in pixels.
        flip: mirror half of the training images.
        padding: black border in pixels for the random crop of training images, 0 for no crop.
        predict_root: folder of images to predict, flat or nested, without labels; None: the test images.
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks; None: what suits the device.
        val_size: images split off for validation, class-balanced; 0: validation uses the test images.
        train_size: number of images to train on, class-balanced; None: all that remain.
        seed: for order and augmentation.

    Raises:
        UserError: a missing folder, no images, a class of the test images that is not in the training images, a size
            out of its range, a link that is refused, a broken link, pipe or device with the name of an image; on
            reading, a file that is not an image or has more than 8192x8192 pixels. The message names it.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        flip: bool = True,
        padding: int = 4,
        predict_root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_size: int = 0,
        train_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if image_size < 1 or padding < 0:
            raise UserError(f"image_size must be at least 1 and padding at least 0, got {image_size} and {padding}.")
        self.root = Path(root).expanduser()
        self.name = re.sub(r"[^\w.-]+", "_", self.root.resolve().name) or "images"
        self.image_size = image_size
        self.flip = flip
        self.padding = padding
        self._classes, self._files, self._labels = list_classes(self.root)
        self._folders = {"train": self.root / "train", "test": self.root / "test"}
        if predict_root is not None:
            self.predict_split = "predict"
            self._folders["predict"] = Path(predict_root).expanduser()
            self._files["predict"] = list_images(self._folders["predict"])
            self._labels["predict"] = [-1] * len(self._files["predict"])
        self.num_classes = len(self._classes)
        self.num_available = len(self._files["train"])
        super().__init__(batch_size, eval_batch_size, val_size, train_size, seed)

    def prepare_data(self) -> None:
        """With several ranks: let one of them decode the images, so that the others find them in the cache."""
        if self.trainer is not None and self.trainer.world_size > 1:
            for split in ("train", "test"):
                self._decoded(split)

    def predict_paths(self) -> list[str]:
        """The file of each image of ``predict_dataloader``, by ``Batch.index``."""
        return [str(self._folders[self.predict_split] / name) for name in self._files[self.predict_split]]

    def _read_class_names(self) -> list[str]:
        return list(self._classes)

    def _read(self, split: str) -> Images:
        images, stats = self._decoded(split)
        if self._constants is None and stats is not None:
            self._constants = stats
        return Images(images, torch.tensor(self._labels[split], dtype=torch.int64))

    def _decoded(self, split: str) -> tuple[Tensor, tuple[list[float], list[float]] | None]:
        """The images of a split and, for the training images, mean and std: from the cache if it is good."""
        folder, names = self._folders[split], self._files[split]
        if split == "predict":
            return decode_files(folder, names, self.image_size), None
        path = self.root / CACHE_FOLDER / f"{split}_{self.image_size}.pt"
        key = _key(folder, names, self.image_size)
        stored = _load_cache(path, key, (len(names), 3, self.image_size, self.image_size))
        if stored is None:
            images = decode_files(folder, names, self.image_size)
            mean, std = channel_stats(images) if split == "train" else ([], [])
            stored = {"key": key, "images": images, "mean": mean, "std": std}
            _save_cache(path, stored)
        return stored["images"], (stored["mean"], stored["std"]) if split == "train" else None


def _key(folder: Path, names: Sequence[str], size: int) -> str:
    """Hash of what the decoded images depend on: path, size and mtime of every file, and the image size."""
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {size}\n".encode())
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise UserError(f"{printable(folder / name)} cannot be read ({error.strerror}).") from error
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load_cache(path: Path, key: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The cached split; None if it is missing, damaged, or of other files."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > math.prod(shape) + _CACHE_EXTRA or archive.testzip() is not None:
                return None
        stored: dict[str, Any] = torch.load(path, weights_only=True)
        images, stats = stored["images"], [*stored["mean"], *stored["std"]]
        good = stored["key"] == key and images.shape == shape and images.dtype == torch.uint8
        return stored if good and all(type(value) is float for value in stats) else None
    except Exception:  # whatever is wrong with a cache, the images themselves are still there
        return None


def _save_cache(path: Path, content: dict[str, Any]) -> None:
    """Write the cache atomically; skip it if the folder is not writable or the disk is full."""
    with suppress(UserError, RuntimeError), replacing(path) as temporary:
        torch.save(content, temporary)
