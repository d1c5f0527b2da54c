"""Random images of CIFAR-100's shape, the same for every contestant; also for versions of before this script."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ickd_pl.data.base import Images, TensorDataModule

CLASSES = 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def random_split(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Pixels, (count, 3, 32, 32) uint8, and labels, (count,) int64."""
    generator = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(count) % CLASSES


class RandomImages(TensorDataModule):
    """The project's data module over them.

    Args:
        images: number of training images.
        test_images: number of test images.
        **kwargs: of the base class.
    """

    known_constants = (MEAN, STD)

    def __init__(self, images: int = 50_000, test_images: int = 500, **kwargs: Any) -> None:
        self.name, self.num_classes, self.image_size = "random", CLASSES, 32
        self.num_available, self.test_images = images, test_images
        super().__init__(**kwargs)

    def _read(self, split: str) -> Images:
        return Images(*random_split(split, self.num_available if split == "train" else self.test_images))

    def _read_class_names(self) -> list[str]:
        return [str(number) for number in range(CLASSES)]
