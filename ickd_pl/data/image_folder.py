"""Any folder of images: ``root/train/<class>/*`` and ``root/test/<class>/*``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, get_args

import torch

from ickd_pl.checks import short
from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.cache import Cache, key_of
from ickd_pl.data.decode import decoding, quiet_about_size
from ickd_pl.data.given import given_path, reachable
from ickd_pl.data.images import Images, LazyImages
from ickd_pl.data.listing import list_classes, list_images
from ickd_pl.errors import UserError

CACHE_FOLDER = ".ickd_cache"
MEMORY_LIMIT = 2**30
"""Bytes of decoded images up to which ``cache="auto"`` keeps them in memory: 7,133 images of 224 pixels."""
CacheKind = Literal["auto", "memory", "disk", "none"]


class ImageFolder(TensorDataModule):
    """Images in folders: ``root/train/<class>/*`` and ``root/test/<class>/*``, at any depth below the class.

    Classes are the sorted folder names of ``root/train``; names that begin with a dot are ignored. Images become 8-bit
    RGB as a person sees them: integers of 16 and 32 bits are scaled from the range of their type (65535 becomes 255),
    floating-point values must be from 0 to 1, orientation tags are honoured, and what is transparent is white. Where
    their size differs they are resized to ``image_size`` on both sides (bilinear, antialias). Mean and std are those of
    all images of ``root/train``, with those that ``val_size`` and ``train_size`` leave out.

    Decoded images are kept as ``cache`` says, which changes no result. With "memory" and "disk" they are also in
    ``root/.ickd_cache/``, which is made anew if it is damaged or if a file is changed, added or removed. On a GPU the
    images are copied to its memory once, whatever ``cache`` says, where they take less than half of what is free.

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
        cache: "memory": all are in memory, uint8; the cache file is done without where it cannot be written. "disk":
            each batch is read from the cache file, which takes a byte for each of 3 * size * size values of an image;
            several processes share what the kernel keeps of it. "none": each batch is decoded anew, and the images
            once more at the start for mean and std. "auto": "memory" up to ``MEMORY_LIMIT`` bytes of all images (1
            GiB) or where ``root`` cannot be written, else "disk".

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
        cache: CacheKind = "auto",
    ) -> None:
        if cache not in get_args(CacheKind):
            raise UserError(f"cache must be one of {', '.join(get_args(CacheKind))}, got {short(cache)}.")
        if image_size < 1 or padding < 0:
            raise UserError(f"image_size must be at least 1 and padding at least 0, got {image_size} and {padding}.")
        self.root = given_path(root, "root")
        self.name = re.sub(r"[^\w.-]+", "_", self.root.resolve().name) or "images"
        self.image_size = image_size
        self.flip = flip
        self.padding = padding
        self.cache = cache
        with reachable("root", self.root):
            self._classes, self._files, self._labels = list_classes(self.root)
        self._folders = {"train": self.root / "train", "test": self.root / "test"}
        if predict_root is not None:
            self.predict_split = "predict"
            self._folders["predict"] = given_path(predict_root, "predict_root")
            with reachable("predict_root", self._folders["predict"]):
                self._files["predict"] = list_images(self._folders["predict"])
            self._labels["predict"] = [-1] * len(self._files["predict"])
        self.num_classes = len(self._classes)
        self.num_available = len(self._files["train"])
        super().__init__(batch_size, eval_batch_size, val_size, train_size, seed)

    def prepare_data(self) -> None:
        """With several ranks: let one of them decode the images, so that the others find them in the cache."""
        if self.trainer is not None and self.trainer.world_size > 1:
            for split in ("train", "test") if self._kind() != "none" else ():
                self._read(split)

    def predict_paths(self) -> list[str]:
        """The file of each image of ``predict_dataloader``, by ``Batch.index``."""
        return [str(self._folders[self.predict_split] / name) for name in self._files[self.predict_split]]

    def _read_class_names(self) -> list[str]:
        return list(self._classes)

    def _read(self, split: str) -> Images:
        labels = torch.tensor(self._labels[split], dtype=torch.int64)
        source = decoding(self._folders[split], self._files[split], self.image_size)
        kind = self._kind()
        if split == "predict":
            with quiet_about_size():
                return Images(source[:] if kind == "memory" else source, labels)
        if kind == "none":
            return Images(source, labels)
        stored = self._cache(split, source).images(in_memory=kind == "memory")
        if self._constants is None and split == "train":
            self._constants = stored.mean, stored.std
        return Images(stored.image, labels)

    def _cache(self, split: str, source: LazyImages) -> Cache:
        return Cache(self._path(split), key_of(self._folders[split], self._files[split], self.image_size), source)

    def _kind(self) -> str:
        if self.cache != "auto":
            return self.cache
        size = sum(map(len, self._files.values())) * 3 * self.image_size**2
        folder = self.root / CACHE_FOLDER
        usable = os.access(folder if folder.exists() else self.root, os.W_OK) or self._path("train").exists()
        return "disk" if size > MEMORY_LIMIT and usable else "memory"

    def _path(self, split: str) -> Path:
        return self.root / CACHE_FOLDER / f"{split}_{self.image_size}.images"
