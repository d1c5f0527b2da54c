"""The batch format: every method gets the same three tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_pl.errors import UserError


class Batch(NamedTuple):
    """One batch of images.

    Attributes:
        image: (B, 3, H, W) float32, normalised.
        label: (B,) int64.
        index: (B,) int64, position among the images trained on (or evaluated). -1 marks a padding sample: a rank
            whose share of the last global batch is empty gets one, so that all ranks take the same number of steps. It
            counts in no metric and has weight 0 in the loss.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of this name


def as_batch(batch: Any) -> Batch:
    """Convert a data module's :class:`Batch`, ``(image, label, index)`` or ``(image, label)`` to a :class:`Batch`.

    Without indices every sample counts as real; methods with ``needs_index`` refuse such data earlier.

    Raises:
        UserError: the batch is something else.
    """
    if isinstance(batch, Batch):
        return batch
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise UserError(f"expected batches of (image, label) or (image, label, index), got {type(batch).__name__}")
    image, label, *index = batch
    return Batch(image, label, index[0] if index else torch.arange(len(label), device=label.device))


@dataclass(frozen=True)
class DataInfo:
    """What a method can read about the data when it builds its adapter.

    Attributes:
        num_classes: K.
        num_samples: number of training images; None if not known yet.
    """

    num_classes: int
    num_samples: int | None = None
