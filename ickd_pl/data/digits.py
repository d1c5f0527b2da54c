"""The demo data: scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import torch

from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.decode import decoded
from ickd_pl.data.images import Images
from ickd_pl.errors import UserError

NUM_TRAIN = 1437
NUM_TEST = 360


class Digits(TensorDataModule):
    """1,797 handwritten digits in 10 classes, bundled with scikit-learn, as 32x32 RGB images.

    The 8x8 images (values 0 to 16) are scaled to 0..255, resized bilinearly with antialias and repeated over the three
    channels. In scikit-learn's order, the first 1,437 are for training and the last 360 for the test. Training
    images are cropped at random (padding 4) and, being digits, never mirrored.
    Mean and std are those of the 1,437 training images, before anything is split off.

    Raises:
        UserError: a size out of its range; on reading, scikit-learn is not installed.
    """

    name = "digits"
    num_classes = 10
    image_size = 32
    num_available = NUM_TRAIN
    flip = False

    def _read_class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def _read(self, split: str) -> Images:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError("Digits needs scikit-learn: run pip install '.[demo]' in the clone.") from None
        from PIL import Image

        digits = load_digits()
        rows = slice(NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, NUM_TRAIN + NUM_TEST)
        grey = (digits.images[rows] * (255 / 16)).round().astype("uint8")
        images = torch.empty((len(grey), 3, self.image_size, self.image_size), dtype=torch.uint8)
        for row, pixels in zip(images.numpy(), grey, strict=True):
            row[:] = decoded(Image.fromarray(pixels), self.image_size)
        return Images(images, torch.tensor(digits.target[rows], dtype=torch.int64))
