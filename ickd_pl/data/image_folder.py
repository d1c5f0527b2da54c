"""Any folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ickd_pl.data.augment import channel_stats
from ickd_pl.data.base import Images, TensorDataModule
from ickd_pl.errors import UserError, near
from ickd_pl.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
CACHE_FOLDER = ".ickd_cache"
_CACHE_FORMAT = 1
_THREADS = 4
_CHUNK = 256


class ImageFolder(TensorDataModule):
    """Images in folders: ``root/train/<class>/*`` and ``root/test/<class>/*``, at any depth below the class.

    Classes are the sorted folder names of ``root/train``; names that begin with a dot are ignored. Images are
    converted to RGB and, where their size differs, resized to ``image_size`` on both sides (bilinear, antialias). They
    are kept in memory as uint8, and cached in ``root/.ickd_cache/`` if that is writable; the cache is rebuilt if it is
    damaged or if a file is changed, added or removed. Mean and std are those of all images of ``root/train``, with
    those that ``val_size`` and ``train_size`` leave out.

    Args:
        root: the folder; its name is the name of the data set.
        image_size: height and width in pixels.
        flip: mirror half of the training images.
        padding: black border in pixels for the random crop of training images, 0 for no crop.
        predict_root: folder of images to predict, flat or nested, without labels; None: the test images.
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks.
        val_size: images split off for validation, class-balanced; 0: validation uses the test images.
        train_size: number of images to train on, class-balanced; None: all that remain.
        seed: for order and augmentation.

    Raises:
        UserError: a missing folder, no images, a class of the test images that is not in the training images, a size
            out of its range; on reading, a file that is not an image. The message names the folder, class or file.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        flip: bool = True,
        padding: int = 4,
        predict_root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 500,
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
        self._classes, self._files, self._labels = _listing(self.root)
        self._folders = {"train": self.root / "train", "test": self.root / "test"}
        if predict_root is not None:
            self.predict_split = "predict"
            self._folders["predict"] = Path(predict_root).expanduser()
            self._files["predict"] = _images_of(self._folders["predict"])
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
        stored = _load_cache(path, key)
        if stored is None:
            images = decode_files(folder, names, self.image_size)
            mean, std = channel_stats(images) if split == "train" else ([], [])
            stored = {"key": key, "images": images, "mean": mean, "std": std}
            _save_cache(path, stored)
        return stored["images"], (stored["mean"], stored["std"]) if split == "train" else None


def _listing(root: Path) -> tuple[list[str], dict[str, list[str]], dict[str, list[int]]]:
    """Classes, and by split the files (relative to the split's folder, sorted by class, then path) and their labels."""
    for folder in (root, root / "train", root / "test"):
        if not folder.is_dir():
            there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
            found = f"; found in {root}: {', '.join(there) or 'no folder'}" if root.is_dir() else ""
            expected = f"{root}/train/<class>/ and {root}/test/<class>/"
            raise UserError(f"{folder} is not a folder; expected {expected}{found}.")
    classes = _subfolders(root / "train")
    if not classes:
        raise UserError(f"{root / 'train'} holds no folders; expected one folder of images for each class.")
    files: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for split in files:
        for name in classes if split == "train" else _subfolders(root / split):
            if name not in classes:
                raise UserError(f"class {name} of {root / split} is not in {root / 'train'}; {near(name, classes)}.")
            found_files = [f"{name}/{file}" for file in _walk(root / split / name)]
            if not found_files and split == "train":
                raise UserError(f"{root / split / name} holds no images ({', '.join(EXTENSIONS)}).")
            files[split] += found_files
            labels[split] += [classes.index(name)] * len(found_files)
    if not files["test"]:
        raise UserError(f"{root / 'test'} holds no images in class folders ({', '.join(EXTENSIONS)}).")
    return classes, files, labels


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _walk(folder: Path) -> Iterator[str]:
    """Image files below a folder, relative to it, in a fixed order."""
    for path, inner, names in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        below = Path(path).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in sorted(names) if name.lower().endswith(EXTENSIONS) and name[0] != ".")


def _images_of(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"predict_root: {folder} is not a folder.")
    names = list(_walk(folder))
    if not names:
        raise UserError(f"predict_root: {folder} holds no images ({', '.join(EXTENSIONS)}).")
    return names


def decoded(image: PILImage, size: int) -> NDArray[np.uint8]:
    """A PIL image as (3, size, size) uint8 RGB, resized bilinearly with antialias where its size differs."""
    from PIL import Image

    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def decode_files(folder: Path, names: Sequence[str], size: int) -> Tensor:
    """Read image files with a few threads.

    Returns:
        (len(names), 3, size, size) uint8.

    Raises:
        UserError: a file that cannot be read as an image, by its name.
    """
    from PIL import Image

    images = torch.empty((len(names), 3, size, size), dtype=torch.uint8)
    target = images.numpy()

    def fill(begin: int) -> None:
        for row in range(begin, min(begin + _CHUNK, len(names))):
            path = f"{folder}/{names[row]}"
            try:
                with Image.open(path) as image:
                    target[row] = decoded(image, size)
            except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
                reason = str(error) if path not in str(error) else type(error).__name__
                raise UserError(f"{path} cannot be read as an image ({reason}). Replace or remove it.") from error

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for _ in pool.map(fill, range(0, len(names), _CHUNK)):
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def _key(folder: Path, names: Sequence[str], size: int) -> str:
    """Hash of what the decoded images depend on: path, size and mtime of every file, and the image size."""
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {size}\n".encode())
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror}).") from error
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load_cache(path: Path, key: str) -> dict[str, Any] | None:
    """The cached split; None if it is missing, damaged, or of other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        stored: dict[str, Any] = torch.load(path, weights_only=True)
        return stored if stored["key"] == key else None
    except Exception:  # whatever is wrong with a cache, the images themselves are still there
        return None


def _save_cache(path: Path, content: dict[str, Any]) -> None:
    """Write the cache atomically; skip it if the folder is not writable or the disk is full."""
    with suppress(UserError, RuntimeError), replacing(path) as temporary:
        torch.save(content, temporary)
