"""Images in memory or read when they are needed, in parts of a few megabytes, one part ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

PART = 2**25
"""Bytes of the parts in which many images are read, hashed or copied."""
T = TypeVar("T")


class LazyImages:
    """Images that are not in memory: ``images[rows]`` reads some of them, as a tensor's rows are taken.

    Args:
        read: writes the images of the given numbers into a (B, 3, H, W) uint8 tensor on the CPU; several threads may
            call it.
        shape: (N, 3, H, W), of what ``read`` knows.
        rows: numbers of the images that belong to this set; None: all.

    Attributes:
        shape: (number of images, 3, H, W).
        dtype: uint8.
    """

    dtype = torch.uint8

    def __init__(
        self, read: Callable[[list[int], Tensor], None], shape: tuple[int, ...], rows: Tensor | None = None
    ) -> None:
        self._read = read
        self._rows = torch.arange(shape[0]) if rows is None else rows
        self.shape = (len(self._rows), *shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        count = len(range(*rows.indices(len(self)))) if isinstance(rows, slice) else len(rows)
        return self.read(rows, torch.empty((count, *self.shape[1:]), dtype=torch.uint8))

    def read(self, rows: Tensor | slice, into: Tensor) -> Tensor:
        """Read some images into a uint8 tensor on the CPU, and return it."""
        self._read(self._rows[rows].tolist(), into)
        return into

    def subset(self, rows: Tensor) -> LazyImages:
        """A set of some of the images, (N,) int64; nothing is read."""
        return LazyImages(self._read, self.shape, self._rows[rows])

    def to(self, device: torch.device) -> Tensor:
        """All images as a tensor on a device."""
        whole = torch.empty(self.shape, dtype=torch.uint8, device=device)
        begin = 0
        for part in parts(self):
            whole[begin : begin + len(part)] = part
            begin += len(part)
        return whole


Pixels: TypeAlias = Tensor | LazyImages


class Images(NamedTuple):
    """The images and labels of one split.

    Attributes:
        image: (N, 3, H, W) uint8, a tensor or :class:`LazyImages`.
        label: (N,) int64, -1 for an image without a label.
    """

    image: Pixels
    label: Tensor

    def subset(self, rows: Tensor) -> Images:
        """Some of the images, (N,) int64."""
        image = self.image.subset(rows) if isinstance(self.image, LazyImages) else self.image[rows]
        return Images(image, self.label[rows])


def in_host_memory(images: Tensor) -> LazyImages:
    """Images of a tensor on the CPU, copied when they are needed."""
    return LazyImages(partial(_take, images), tuple(images.shape))


def _take(images: Tensor, rows: list[int], into: Tensor) -> None:
    torch.index_select(images, 0, torch.tensor(rows), out=into)


def parts(images: Pixels) -> Iterator[Tensor]:
    """All images in order, in tensors of at most ``PART`` bytes (or one image); lazy ones are read one part ahead."""
    each = max(1, PART // max(1, math.prod(images.shape[1:])))
    slices = (slice(begin, begin + each) for begin in range(0, len(images), each))
    if isinstance(images, Tensor):
        return (images[rows] for rows in slices)
    return one_ahead(partial(images.__getitem__, rows) for rows in slices)


def one_ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of calls in order; while one is used, a thread makes the next call.

    The iterable itself is advanced in the caller's thread.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for call in calls:
            following = pool.submit(call)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
