"""Random crop, flip and normalisation of a whole batch at once, bit for bit what torchvision does image by image.

Every function is pure, runs on its tensors' device (CPU or GPU) and never waits for that device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ickd_pl.data.images import Pixels, parts

MIRROR_LIMIT = 2**30
"""Largest table of images, in bytes, that is kept with borders and mirrored images to save time."""


class Constants(NamedTuple):
    """Normalisation constants as tensors on one device; built by :func:`constants`.

    Attributes:
        mean: (3, 1, 1) float32.
        std: (3, 1, 1) float32.
        scale: () float32, holds 255. A tensor on purpose: dividing by a Python number may become a multiplication by
            the reciprocal on a GPU, which rounds differently.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor


class Padded(NamedTuple):
    """Images with a black border, laid out for :func:`crop_flip`; built by :func:`pad_images`.

    Attributes:
        pixels: (copies, N, 3, H + 2 * padding, W + 2 * padding) uint8. The second copy, if any, is mirrored.
        padding: width of the border in pixels.
        rows: (3 * H,) int64, where the rows of a window at offset (0, 0) begin inside an image.
    """

    pixels: Tensor
    padding: int
    rows: Tensor


def constants(mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> Constants:
    """Mean and std per channel (of pixels scaled to 0..1) as :class:`Constants` on a device."""
    as_tensor = [
        torch.tensor(list(values), dtype=torch.float32, device=device).view(-1, 1, 1) for values in (mean, std)
    ]
    return Constants(as_tensor[0], as_tensor[1], torch.tensor(255.0, dtype=torch.float32, device=device))


def normalise(image: Tensor, consts: Constants) -> Tensor:
    """Scale uint8 pixels to 0..1, subtract the mean and divide by the std, in this order (another rounds differently).

    Args:
        image: (B, 3, H, W) uint8.
        consts: on the same device.

    Returns:
        (B, 3, H, W) float32, equal to torchvision's ``to_tensor`` and ``normalize``.
    """
    return image.float().div_(consts.scale).sub_(consts.mean).div_(consts.std)


def table_bytes(shape: Sequence[int], padding: int, mirror: bool) -> int:
    """Size of the table that :func:`pad_images` makes of (N, 3, H, W) images."""
    count, channels, height, width = shape
    return (2 if mirror else 1) * count * channels * (height + 2 * padding) * (width + 2 * padding)


def table_needed(shape: Sequence[int], padding: int, flip: bool) -> int:
    """Bytes of the table that is kept of a training set; 0 for a set that is too large."""
    return table_bytes(shape, padding, flip) if table_bytes(shape, padding, True) <= MIRROR_LIMIT else 0


def pad_images(images: Tensor, padding: int = 4, mirror: bool | None = None) -> Padded:
    """Surround every image by a black border: once for a whole training run, or those of a batch.

    Args:
        images: (N, 3, H, W) uint8.
        padding: width of the border in pixels, 0 for none.
        mirror: keep a mirrored copy too. It doubles the memory and makes :func:`crop_flip` about 1.5 times as fast.
            None: only where both copies together stay within ``MIRROR_LIMIT`` bytes.

    Returns:
        The table, on the device of ``images``.
    """
    count, channels, height, width = images.shape
    high, wide = height + 2 * padding, width + 2 * padding
    if mirror is None:
        mirror = table_bytes(images.shape, padding, True) <= MIRROR_LIMIT
    pixels = images.new_zeros((2 if mirror else 1, count, channels, high, wide))
    inner = pixels[:, :, :, padding : padding + height, padding : padding + width]
    inner[0] = images
    if mirror:
        inner[1] = images.flip(-1)
    channel = torch.arange(channels, device=images.device).view(-1, 1) * (high * wide)
    row = torch.arange(height, device=images.device) * wide
    return Padded(pixels, padding, (channel + row).view(-1))


def crop_flip(padded: Padded, index: Tensor, offset: Tensor, flip: Tensor) -> Tensor:
    """Cut one window of the original size out of each chosen image and mirror some of them.

    All rows of all windows are fetched by one ``index_select`` over a view in which a row begins at every byte.
    The arguments are not checked: an offset outside its range would read pixels of a neighbouring image.

    Args:
        padded: from :func:`pad_images`, all on one device with the other arguments.
        index: (B,) int64, which images.
        offset: (B, 2) int64, top and left edge (y, x) of each window in the padded image, 0 to ``2 * padding``.
        flip: (B,) bool, mirror left to right after the crop.

    Returns:
        (B, 3, H, W) uint8.
    """
    copies, count, channels, high, wide = padded.pixels.shape
    height, width = high - 2 * padded.padding, wide - 2 * padded.padding
    y, x = offset.unbind(1)
    if copies == 2:
        index = index + count * flip
        x = torch.where(flip, 2 * padded.padding - x, x)
    start = index * (channels * high * wide) + y * wide + x
    flat = padded.pixels.view(-1)
    every_row = flat.as_strided((flat.numel() - width + 1, width), (1, 1))
    picked = every_row.index_select(0, (start.unsqueeze(1) + padded.rows).view(-1))
    image = picked.view(-1, channels, height, width)
    return image if copies == 2 else torch.where(flip.view(-1, 1, 1, 1), image.flip(-1), image)


def augment(padded: Padded, index: Tensor, offset: Tensor, flip: Tensor, consts: Constants) -> Tensor:
    """A training batch: :func:`crop_flip`, then :func:`normalise`.

    Returns:
        (B, 3, H, W) float32, bit for bit the result of ``RandomCrop``, ``RandomHorizontalFlip``, ``ToTensor`` and
        ``Normalize`` for the same images, offsets and flips.
    """
    return normalise(crop_flip(padded, index, offset, flip), consts)


class ChannelStats:
    """Mean and population std per channel of uint8 images, scaled to 0..1, that come in parts.

    Values are counted, so the result is exact and the same on every machine and for every division into parts.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(3, 256, dtype=torch.int64)

    def add(self, images: Tensor) -> None:
        """Count the values of (B, 3, H, W) images on the CPU."""
        for channel, values in enumerate(images.unbind(1)):
            self._counts[channel] += torch.bincount(values.reshape(-1), minlength=256)

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and std; a constant channel gets std 1."""
        values = torch.arange(256)
        total, squares = (self._counts * values).sum(1).tolist(), (self._counts * values**2).sum(1).tolist()
        count = int(self._counts[0].sum())
        mean = [s / count / 255 for s in total]
        std = [math.sqrt(q * count - s * s) / count / 255 or 1.0 for s, q in zip(total, squares, strict=True)]
        return mean, std


def channel_stats(images: Pixels) -> tuple[list[float], list[float]]:
    """:class:`ChannelStats` of (N, 3, H, W) uint8 images."""
    stats = ChannelStats()
    for part in parts(images):
        stats.add(part)
    return stats.mean_std()
