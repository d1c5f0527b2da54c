"""Hashes of the data and of networks, by which runs notice that one has been replaced."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from ickd_pl.data import TensorDataModule
from ickd_pl.data.batch import as_batch
from ickd_pl.data.images import Pixels, parts
from ickd_pl.errors import UserError


def data_hash(data: Any) -> str:
    """SHA-256 of the images and labels for training and evaluation, in order.

    For a data module of the package: the stored images and their normalisation constants. For any other: the batches
    that its loaders yield under a fixed seed, that is one epoch of (augmented) training batches, and the validation
    and test batches.

    Args:
        data: a data module; this prepares it and sets it up.

    Raises:
        UserError: a custom data module yields something other than batches of images and labels.
    """
    digest = hashlib.sha256()
    data.prepare_data()
    if not isinstance(data, TensorDataModule):
        _update(digest, _yielded(data))
        return digest.hexdigest()
    for split in ("train", data.eval_split, "test"):
        images, labels = data._part(split)
        _update(digest, ((f"{split} image", images), (f"{split} label", labels)))
    # Computed from all training images, even if a run uses only some.
    digest.update(repr((list(data.mean), list(data.std))).encode())
    return digest.hexdigest()


def _yielded(data: pl.LightningDataModule) -> Iterator[tuple[str, Tensor]]:
    with isolate_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        for stage, splits in (("fit", ("train", "val")), ("test", ("test",))):
            data.setup(stage)
            for split in splits:
                for raw in getattr(data, f"{split}_dataloader")():
                    pair = raw[:2] if isinstance(raw, list | tuple) else ()
                    if not all(isinstance(each, Tensor) for each in pair):
                        kinds = " and ".join(type(each).__name__ for each in pair)
                        raise UserError(f"{type(data).__name__}: expected {split} batches of tensors, got {kinds}")
                    image, label, _ = as_batch(raw)
                    _check_labels(data, split, label)
                    yield f"{split} image", image
                    yield f"{split} label", label


def _check_labels(data: Any, split: str, label: Tensor) -> None:
    classes = int(data.num_classes)
    if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise UserError(
            f"{type(data).__name__}: labels of the {split} batches must be from 0 to {classes - 1} (num_classes "
            f"{classes}), got {int(label.min())} to {int(label.max())}"
        )


def network_hash(net: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers with their names, independent of the file they came from."""
    digest = hashlib.sha256()
    _update(digest, sorted(net.state_dict().items()))
    return digest.hexdigest()


def _update(digest: Any, tensors: Iterable[tuple[str, Pixels]]) -> None:
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in [tensor] if isinstance(tensor, Tensor) else parts(tensor):
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
