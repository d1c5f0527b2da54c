"""Which training images belong to which class, to draw images of the same and of other classes on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError


class ClassTable(nn.Module):
    """Labels of the training images, kept in the state dict, and draws by class.

    Args:
        num_samples: training images.
        num_classes: K.
    """

    labels: Tensor
    order: Tensor
    starts: Tensor

    def __init__(self, num_samples: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((num_samples,), -1))
        # Derived from the labels: images sorted by class, and where each class starts among them.
        self.register_buffer("order", torch.zeros(num_samples, dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.zeros(num_classes + 1, dtype=torch.long), persistent=False)
        self.smallest = self.largest = 0
        self.register_load_state_dict_post_hook(_reread)  # type: ignore[no-untyped-call]

    @property
    def ready(self) -> bool:
        """Whether the labels are known."""
        return self.largest > 0

    def fill(self, labels: Tensor) -> None:
        """Set the class of every training image, shape (N,).

        Raises:
            UserError: another number of images, a label out of range, or all of one class.
        """
        classes = len(self.starts) - 1
        if labels.shape != self.labels.shape:
            raise UserError(f"the method was built for {len(self.labels)} training images, the data have {len(labels)}")
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise UserError(f"expected labels in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
        labels = labels.to(self.labels)
        counts = torch.bincount(labels, minlength=classes)
        self.smallest, self.largest = int(counts.min()), int(counts.max())
        if self.largest == len(labels):
            raise UserError("negatives are images of other classes, but all training images have one label")
        self.labels.copy_(labels)
        self.order.copy_(labels.argsort(stable=True))
        self.starts[1:] = counts.cumsum(0)

    def others(self, label: Tensor, count: int, draws: Draws) -> Tensor:
        """Images of other classes for each label; no image twice in a row where there are enough of them.

        Args:
            label: shape (B,).
            count: how many.
            draws: on the labels' device.

        Returns:
            Positions among the training images, shape (B, count).
        """
        total = len(self.labels)
        first = self.starts[label][:, None]  # (B, 1)
        size = self.starts[label + 1][:, None] - first
        pool = total - size  # images of other classes: all of `order` but one stretch
        position = torch.zeros(len(label), count, dtype=torch.long, device=label.device)
        if count > total - self.largest:  # too few in some class
            position = _below(pool, draws.table(len(label), count))
        if count <= total - self.smallest:
            keys = draws.table(len(label), total - self.smallest)
            if self.largest > self.smallest:
                outside = torch.arange(keys.shape[1], device=label.device) >= pool
                keys = keys.clamp(max=_MOST - 1).masked_fill(outside, _MOST)
            distinct = keys.topk(count, dim=1, largest=False, sorted=False).indices
            position = torch.where(count <= pool, distinct, position)
        return self.order[position + size * (position >= first)]

    def same(self, label: Tensor, draws: Draws) -> Tensor:
        """One image of each label's own class: (B,) to (B,)."""
        first = self.starts[label]
        return self.order[first + _below(self.starts[label + 1] - first, draws.row(len(label)))]


class Draws:
    """Random numbers that are a pure function of a seed, a counter and their place, by hashing in whole numbers.

    No generator has a state or is made, so a draw waits for nothing, is the same on every device, and can be compiled
    and captured in a CUDA graph with the counter in a buffer.

    [0] Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014: the 64-bit hash of a counter

    Args:
        seed: whole number, int64 of shape ().
        counter: likewise, below 2^31: of the step.
        rank: of the process, below 2^12.
    """

    def __init__(self, seed: Tensor, counter: Tensor, rank: int) -> None:
        self._seed, self._place = seed, (counter << 12) + rank << 20

    def row(self, size: int) -> Tensor:
        """Uniform over the int32 numbers, shape (size,)."""
        return self._words(_FOR_ROW, size).int()

    def table(self, rows: int, columns: int) -> Tensor:
        """Uniform over the int32 numbers, shape (rows, columns); those of a row are all different."""
        words = self._words(0, rows + 1)
        column = torch.arange(columns, dtype=torch.int32, device=words.device) + words[0].int()
        for shift, factor in (
            (16, 0x7FEB352D),
            (15, -0x7B935975),
        ):  # each step maps different numbers to different ones
            column = _shifted(column, shift, 32) * factor
        factors, offsets = (words[1:].int() | 1)[:, None], (words[1:] >> 32).int()[:, None]
        keys = torch.addcmul(offsets, factors, _shifted(column, 16, 32))
        return _shifted(keys, 15, 32).mul_(0x2C1B3C6D)

    def _words(self, start: int, count: int) -> Tensor:
        """Uniform over the int64 numbers, shape (count,)."""
        place = self._place + torch.arange(start + 1, start + count + 1, device=self._place.device)
        x = self._seed + place * _GOLDEN
        x = _shifted(x, 30, 64) * -0x40A7B892E31B1A47
        return _shifted(_shifted(x, 27, 64) * -0x6B2FB644ECCEEE15, 31, 64)


# Numbers wrap around on overflow. The constants are 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB of
# [0], and of 32 bits 0x7FEB352D, 0x846CA68B and 0x2C1B3C6D, as signed numbers.
_GOLDEN = -0x61C8864680B583EB
_MOST = 2**31 - 1
_FOR_ROW = 1 << 19


def _shifted(x: Tensor, by: int, bits: int) -> Tensor:
    """``x ^ (x >> by)`` with zeros shifted in, of a new tensor."""
    return (x >> by).bitwise_and_((1 << bits - by) - 1).bitwise_xor_(x)


def _below(bound: Tensor, drawn: Tensor) -> Tensor:
    """Whole numbers from 0 to ``bound`` exclusive, from numbers uniform over int32."""
    return (drawn.long() & 0xFFFFFFFF) * bound >> 32


def _reread(table: ClassTable, _: Any) -> None:
    if int(table.labels.min()) >= 0:
        table.fill(table.labels.clone())
