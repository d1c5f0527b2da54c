"""Which training images belong to which class, to draw images of the same and of other classes on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ickd_pl.errors import UserError


class ClassTable(nn.Module):
    """Labels of the training images, kept in the state dict, and draws by class from a generator.

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

    def others(self, label: Tensor, count: int, draws: torch.Generator) -> Tensor:
        """Images of other classes for each label; no image twice in a row where there are enough of them.

        Args:
            label: shape (B,).
            count: how many.
            draws: generator on the labels' device.

        Returns:
            Positions among the training images, shape (B, count).
        """
        total = len(self.labels)
        first = self.starts[label][:, None]  # (B, 1)
        size = self.starts[label + 1][:, None] - first
        pool = total - size  # images of other classes: all of `order` but one stretch
        position = torch.zeros(len(label), count, dtype=torch.long, device=label.device)
        if count > total - self.largest:  # too few in some class
            position = _integers((len(label), count), pool, draws)
        if count <= total - self.smallest:
            keys = torch.rand(len(label), total - self.smallest, generator=draws, device=label.device)
            keys.masked_fill_(torch.arange(keys.shape[1], device=label.device) >= pool, 2.0)
            distinct = keys.topk(count, dim=1, largest=False, sorted=False).indices
            position = torch.where(count <= pool, distinct, position)
        return self.order[position + size * (position >= first)]

    def same(self, label: Tensor, draws: torch.Generator) -> Tensor:
        """One image of each label's own class: (B,) to (B,)."""
        first = self.starts[label]
        return self.order[first + _integers(label.shape, self.starts[label + 1] - first, draws)]


def _integers(shape: tuple[int, ...], below: Tensor, draws: torch.Generator) -> Tensor:
    """Whole numbers from 0 to ``below`` exclusive, drawn on the device."""
    uniform = torch.rand(shape, generator=draws, device=below.device)
    return torch.minimum((uniform * below).long(), below - 1)


def _reread(table: ClassTable, _: Any) -> None:
    if int(table.labels.min()) >= 0:
        table.fill(table.labels.clone())
