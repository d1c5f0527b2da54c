"""What an own loader may yield, and the one line for everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ickd_pl import Batch, UserError
from ickd_pl.data.batch import as_batch

IMAGE, LABEL = torch.zeros(4, 3, 8, 8), torch.arange(4)

REFUSED: dict[str, tuple[Any, str]] = {
    "dict": ({"image": IMAGE, "label": LABEL}, r"\(image, label\).*got a dict with the keys image, label"),
    "one": ((IMAGE,), "got a tuple of 1"),
    "a list of batches as loader": ([IMAGE], "got a list of 1: .*, and train_dataloader one loader, not a list"),
    "four": ([IMAGE, LABEL, LABEL, LABEL], "got a list of 4"),
    "image alone": (IMAGE, "got a tensor"),
    "text": ("abc", "got a value of type str"),
    "none": (None, "got a value of type NoneType"),
    "numpy": ((IMAGE.numpy(), LABEL), "all tensors, got a value of type ndarray as image"),
    "two loaders": (([IMAGE, LABEL], [IMAGE, LABEL]), "got a list of 2 as image"),
    "label a list": ((IMAGE, [0, 1, 2, 3]), "got a list of 4 as label"),
    "grey": ((IMAGE[:, :1], LABEL), r"\(B, 3, H, W\), got \(4, 1, 8, 8\): give grey images three channels"),
    "channels last": ((IMAGE.permute(0, 2, 3, 1), LABEL), r"got \(4, 8, 8, 3\): channels come second"),
    "no batch": ((IMAGE[0], LABEL[0]), r"got \(3, 8, 8\): add the dimension of the batch"),
    "volumes": ((IMAGE[:, :, None], LABEL), r"got \(4, 3, 1, 8, 8\)"),
    "empty": ((IMAGE[:0], LABEL[:0]), r"got \(0, 3, 8, 8\): the batch is empty"),
    "uint8": ((IMAGE.byte(), LABEL), r"floating-point type, got uint8: convert them, such as image.float\(\) / 255"),
    "int images": ((IMAGE.long(), LABEL), "floating-point type, got int64"),
    "swapped": ((LABEL, IMAGE), r"images \(B, 3, H, W\), got \(4,\)"),
    "float labels": ((IMAGE, LABEL.float()), r"label of an integer type, got float32: convert with label.long\(\)"),
    "bool labels": ((IMAGE, LABEL.bool()), "label of an integer type, got bool"),
    "column": ((IMAGE, LABEL[:, None]), r"label \(4,\), one for each image, got \(4, 1\): use label\[:, 0\]"),
    "one-hot": ((IMAGE, torch.eye(4)), r"got \(4, 4\): one number per image, such as label.argmax\(1\)"),
    "one label": ((IMAGE, LABEL[0]), r"label \(4,\), one for each image, got \(\)"),
    "labels of another length": ((IMAGE, LABEL[:3]), r"label \(4,\), one for each image, got \(3,\)"),
    "indices of another length": ((IMAGE, LABEL, torch.arange(5)), r"index \(4,\), one for each image, got \(5,\)"),
    "float indices": ((IMAGE, LABEL, LABEL.double()), "index of an integer type, got float64"),
    "a Batch": (Batch(IMAGE, LABEL[:2], LABEL), r"label \(4,\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_batches_are_refused_in_one_line(kind: str) -> None:
    raw, message = REFUSED[kind]
    with pytest.raises(UserError, match=rf"^expected batches .*{message}") as refused:
        as_batch(raw)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_become_int64(dtype: torch.dtype) -> None:
    batch = as_batch([IMAGE, LABEL.to(dtype), LABEL.to(dtype)])
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert torch.equal(batch.label, LABEL) and torch.equal(batch.index, LABEL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_get_the_type_of_the_network(dtype: torch.dtype) -> None:
    assert as_batch((IMAGE.to(dtype), LABEL), torch.float32).image.dtype == torch.float32
    assert as_batch((IMAGE.to(dtype), LABEL)).image.dtype == dtype
    assert as_batch((torch.from_numpy(np.zeros((4, 3, 8, 8))), LABEL), torch.float32).image.dtype == torch.float32


def test_a_good_batch_is_not_copied() -> None:
    batch = as_batch((IMAGE, LABEL), torch.float32)
    assert batch.image is IMAGE and batch.label is LABEL
    assert torch.equal(batch.index, torch.arange(4)), "without indices every sample counts as real"


def test_a_method_that_needs_the_index_is_named() -> None:
    with pytest.raises(UserError, match=r"CRD needs the index .* \(image, label, index\)"):
        as_batch((IMAGE, LABEL), index_for=["CRD"])
