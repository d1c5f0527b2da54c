"""The batch format: every method gets the same three tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ickd_pl.errors import UserError

EXPECTED = "expected batches of (image, label) or (image, label, index)"


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


def as_batch(batch: Any, dtype: torch.dtype | None = None, index_for: Sequence[str] = ()) -> Batch:
    """Convert a loader's :class:`Batch`, ``(image, label, index)`` or ``(image, label)`` to a :class:`Batch`.

    Labels and indices of any integer type become int64. Without indices every sample counts as real. Only shapes and
    types are looked at: this is called in every step, and reading values would wait for the device.

    Args:
        batch: what the loader yields.
        dtype: floating-point type of the network, to which images of another one are converted; None: as they are.
        index_for: names of the methods that need the index of each image.

    Raises:
        UserError: the batch is something else; the message says what was expected and what came.
    """
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise UserError(
            f"{EXPECTED}, got {_kind(batch)}: let the dataset return such a tuple, and train_dataloader one loader, "
            "not a list, which Lightning takes for several loaders"
        )
    if index_for and len(batch) < 3:
        raise UserError(
            f"{', '.join(index_for)} needs the index of each training image: let the data yield "
            "(image, label, index), as ickd_pl's data modules do"
        )
    image, label, *rest = batch
    for name, value in zip(("image", "label", "index"), batch, strict=False):
        if not isinstance(value, Tensor):
            raise UserError(f"{EXPECTED}, all tensors, got {_kind(value)} as {name}")
    _check_image(image)
    label = _whole_numbers("label", label, len(image))
    index = _whole_numbers("index", rest[0], len(image)) if rest else torch.arange(len(label), device=label.device)
    return Batch(image if dtype is None else image.to(dtype), label, index)


def _check_image(image: Tensor) -> None:
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise UserError(f"expected batches with images (B, 3, H, W), got {shape}{_shape_advice(shape)}")
    if not image.is_floating_point():
        raise UserError(
            f"expected batches with normalised images of a floating-point type, got {_name(image.dtype)}: convert "
            "them, such as image.float() / 255, then subtract the mean and divide by the standard deviation"
        )


def _shape_advice(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return ": the batch is empty"
    if len(shape) == 3 and shape[0] == 3:
        return ": add the dimension of the batch, image[None]"
    if len(shape) == 4 and shape[3] == 3:
        return ": channels come second, image.permute(0, 3, 1, 2)"
    if len(shape) == 4 and shape[1] == 1:
        return ": give grey images three channels, image.expand(-1, 3, -1, -1)"
    return ""


def _whole_numbers(name: str, value: Tensor, count: int) -> Tensor:
    """Labels or indices as (B,) int64."""
    if tuple(value.shape) != (count,):
        advice = ""
        if name == "label" and value.dim() == 2 and len(value) == count:
            advice = ": use label[:, 0]" if value.shape[1] == 1 else ": one number per image, such as label.argmax(1)"
        raise UserError(
            f"expected batches with {name} ({count},), one for each image, got {tuple(value.shape)}{advice}"
        )
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise UserError(
            f"expected batches with {name} of an integer type, got {_name(value.dtype)}: convert with {name}.long()"
        )
    return value.long()


def _kind(value: Any) -> str:
    """What came, for a message."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, list(value)[:5]))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "a tensor" if isinstance(value, Tensor) else f"a value of type {type(value).__name__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class DataInfo:
    """What a method can read about the data when it builds its adapter.

    Attributes:
        num_classes: K.
        num_samples: number of training images; None if not known yet.
    """

    num_classes: int
    num_samples: int | None = None
